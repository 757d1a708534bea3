"""Reads the environment, which compose fills from .env: https://django-environ.readthedocs.io"""

import environ

env = environ.Env()
