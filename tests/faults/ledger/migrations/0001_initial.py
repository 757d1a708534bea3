from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("key", models.CharField(max_length=100, primary_key=True, serialize=False)),
                ("accepted_at", models.DateTimeField(null=True)),
                ("started", models.IntegerField(default=0)),
                ("done", models.IntegerField(default=0)),
                ("first_done_at", models.DateTimeField(null=True)),
            ],
        ),
    )
