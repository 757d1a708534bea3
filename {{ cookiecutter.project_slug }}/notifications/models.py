from django.db import models

from posts.models import Post


class Subscription(models.Model):
    """Somebody who gets mails about new posts."""

    email = models.EmailField(unique=True)
    keywords = models.CharField(
        max_length=500,
        blank=True,
        help_text="Comma-separated; a post with one of them in its title is sent. None: all posts.",
    )

    def __str__(self) -> str:
        """Return the address."""
        return self.email

    def wants(self, post: Post) -> bool:
        """Return whether the title has one of the keywords, ignoring case."""
        keywords = [word.strip().casefold() for word in self.keywords.split(",") if word.strip()]
        return not keywords or any(word in post.title.casefold() for word in keywords)


class Notification(models.Model):
    """One mail about one post to one subscriber: sent, or still to be sent."""

    subscription = models.ForeignKey(Subscription, models.CASCADE)
    post = models.ForeignKey(Post, models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["subscription", "post"], name="one_mail_per_subscriber_and_post"
            )
        ]

    def __str__(self) -> str:
        """Return the post and the subscriber."""
        return f"{self.post} to {self.subscription}"
