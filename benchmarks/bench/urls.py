from django.urls import path

from . import views

urlpatterns = [
    path("bench/sync", views.answer),
    path("bench/async", views.answer_async),
    path("bench/row", views.row),
    path("bench/stream", views.stream),
]
