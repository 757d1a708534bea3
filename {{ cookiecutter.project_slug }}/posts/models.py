from django.db import models


class Site(models.Model):
    """An address that is crawled for posts."""

    class Kind(models.TextChoices):
        """How its posts are read."""

        FEED = "feed", "RSS or Atom"
        JSON = "json", "JSON Feed"

    url = models.URLField("address", max_length=500, unique=True)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.FEED)
    crawled_at = models.DateTimeField(null=True, editable=False)
    error = models.CharField(max_length=500, blank=True, editable=False)  # of the last attempt

    def __str__(self) -> str:
        """Return the address."""
        return self.url


class Post(models.Model):
    """Something new that a site had."""

    site = models.ForeignKey(Site, models.CASCADE, related_name="posts")
    key = models.CharField(max_length=500)  # its id on the site
    url = models.URLField("address", max_length=500)
    title = models.CharField(max_length=500)
    found_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-found_at", "-pk"]
        constraints = [models.UniqueConstraint(fields=["site", "key"], name="post_once_per_site")]

    def __str__(self) -> str:
        """Return the title."""
        return self.title
