"""The ASGI application that gunicorn serves, and uvicorn in development."""

from django.core.asgi import get_asgi_application

from stack.health import HealthChecks

application = HealthChecks(get_asgi_application())
