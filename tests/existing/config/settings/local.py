from .base import *

DEBUG = True
SECRET_KEY = env("DJANGO_SECRET_KEY", default="local")
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
