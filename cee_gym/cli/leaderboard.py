"""`cee-gym leaderboard`: agents on the recordings in the package."""

from dataclasses import dataclass
from pathlib import Path

from cee_gym.cli.arguments import check_agent, check_there
from cee_gym.cli.options import command
from cee_gym.errors import CeeGymError, check_number
from cee_gym.settings import MOST_SEED


@command("leaderboard")
@dataclass(frozen=True)
class Leaderboard:
    """Compares agents on the recordings in the package, with the exact bounds of each.

    Every agent learns on train with its preset and is reported on dev. Agents of other libraries
    join by a file of their exit probabilities, which cee_gym.leaderboard.write_submission writes.

    Attributes:
        agents: The names of the agents. By default most of those in cee-gym.
        seeds: Each agent is trained once for each of these.
        submissions: Files of other agents.
        validate: Only play the submissions in the environments, and hold their returns to the
            closed form.
        output: A file for everything as JSON.
    """

    agents: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    submissions: tuple[Path, ...] = ()
    validate: bool = False
    output: Path | None = None

    def run(self) -> None:
        """Trains, and prints a table for each recording."""
        for agent in self.agents or ():
            check_agent(agent)
        for file in self.submissions:
            check_there("--submissions", str(file))
        for seed in self.seeds:
            check_number("seed", seed, 0, MOST_SEED)
        from cee_gym import leaderboard
        from cee_gym.documents import write_document
        from cee_gym.progress import say, show_progress

        if self.validate:
            if not self.submissions:
                raise CeeGymError("--validate plays submissions: give --submissions FILE")
            for file in self.submissions:
                for id, (exact, played) in leaderboard.validate(file).items():
                    print(
                        f"{file}: {id} earns {exact:.4f} in closed form; episodes give "
                        f"{played.mean:.4f} ({played.low:.4f} to {played.high:.4f})"
                    )
            return
        for file in self.submissions:
            leaderboard.read_submission(file)
        agents = leaderboard.AGENTS if self.agents is None else self.agents
        known = {id: leaderboard.known_about(id) for id in leaderboard.ENTRIES}
        lines = []
        with show_progress(total=len(known) * len(agents), unit="agent") as progress:
            for id, about in known.items():
                for agent in agents:
                    lines.append(leaderboard.run_agent(id, agent, self.seeds, about))
                    progress.update()
                    say(f"{agent} on {id}: {lines[-1].returns[0]:.4f}")
        for file in self.submissions:
            lines += leaderboard.run_submission(file, known)
        print(leaderboard.leaderboard_table(lines, known))
        if self.output is not None:
            write_document(self.output, leaderboard.to_json(lines, known))
