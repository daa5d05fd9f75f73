"""Intent and topic classification of short texts with many classes.

Neither set has an official hub name.
"""

from cee_gym.tasks.base import Task

TASKS = (
    # M-CID, English (Arora et al. 2020).
    Task(
        "mcid",
        labels=(
            "can i get from feces animal pets",
            "can i get from packages surfaces",
            "donate",
            "hi",
            "how does corona spread",
            "latest numbers",
            "myths",
            "news and press",
            "okay thanks",
            "protect yourself",
            "share",
            "travel",
            "what are symptoms",
            "what are treatment options",
            "what if i visited high risk area",
            "what is corona",
        ),
        text="text",
    ),
    # Question titles of 20 tags (Xu et al. 2015), whose files number the tags from 1.
    Task(
        "stackoverflow",
        labels=(
            "wordpress",
            "oracle",
            "svn",
            "apache",
            "excel",
            "matlab",
            "visual-studio",
            "cocoa",
            "osx",
            "bash",
            "spring",
            "hibernate",
            "scala",
            "sharepoint",
            "ajax",
            "qt",
            "drupal",
            "linq",
            "haskell",
            "magento",
        ),
        text="text",
        first_number=1,
        other_names={"title": "text"},
    ),
)
