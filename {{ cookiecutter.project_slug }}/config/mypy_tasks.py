"""
A plugin for mypy: what @shared_task makes has Celery's methods for Django, such as delay_on_commit.

celery-types cannot know that the app of this project has a class of its own for tasks (task.py).
https://mypy.readthedocs.io/en/stable/extending_mypy.html
"""

from collections.abc import Callable

from mypy.nodes import TypeInfo
from mypy.plugin import FunctionContext, Plugin
from mypy.types import CallableType, Instance, Type, get_proper_type


class Tasks(Plugin):
    """Changes the type that @shared_task gives."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """Tell mypy what to call for which function."""
        return self.shared_task if fullname == "celery.app.shared_task" else None

    def shared_task(self, context: FunctionContext) -> Type:
        """Give the task, or with arguments the decorator that makes it."""
        made = get_proper_type(context.default_return_type)
        if isinstance(made, CallableType):
            return made.copy_modified(ret_type=self.django_task(made.ret_type))
        return self.django_task(made)

    def django_task(self, made: Type) -> Type:
        """Give Celery's class for Django instead of its plain one, with the same parameters."""
        task = get_proper_type(made)
        found = self.lookup_fully_qualified("celery.contrib.django.task.DjangoTask")
        if not found or not isinstance(found.node, TypeInfo) or not isinstance(task, Instance):
            return made
        return Instance(found.node, task.args)


def plugin(version: str) -> type[Plugin]:
    """Name the plugin; mypy calls this."""
    return Tasks
