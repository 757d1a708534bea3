from django.db import models


class Order(models.Model):
    title = models.CharField(max_length=100)
    receipts = models.IntegerField(default=0)
    picture = models.FileField(upload_to="pictures", blank=True)
