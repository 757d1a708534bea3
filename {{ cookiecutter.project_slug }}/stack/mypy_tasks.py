"""
A plugin for mypy: the tasks of @shared_task have Celery's methods for Django, such as delay_on_commit.

celery-types cannot know that this project's app has a task class of its own (celery/task.py).
https://mypy.readthedocs.io/en/stable/extending_mypy.html
"""

from collections.abc import Callable

from mypy.nodes import TypeInfo
from mypy.plugin import FunctionContext, Plugin
from mypy.types import CallableType, Instance, Type, get_proper_type


class Tasks(Plugin):
    """Changes the type that @shared_task returns."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """Return what mypy calls for a function."""
        return self.shared_task if fullname == "celery.app.shared_task" else None

    def shared_task(self, context: FunctionContext) -> Type:
        """Return the type of the task, or with arguments that of the decorator."""
        made = get_proper_type(context.default_return_type)
        if isinstance(made, CallableType):
            return made.copy_modified(ret_type=self.django_task(made.ret_type))
        return self.django_task(made)

    def django_task(self, made: Type) -> Type:
        """Return Celery's class for Django instead of its plain one, with the same parameters."""
        task = get_proper_type(made)
        found = self.lookup_fully_qualified("celery.contrib.django.task.DjangoTask")
        if not found or not isinstance(found.node, TypeInfo) or not isinstance(task, Instance):
            return made
        return Instance(found.node, task.args)


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; mypy calls this."""
    return Tasks
