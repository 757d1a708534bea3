from django.urls import path

from . import views

urlpatterns = [
    path("upload", views.upload),
    path("request", views.show_request),
    path("hang", views.hang),
    path("query", views.query),
    path("fail", views.fail),
    path("again", views.again),
    path("slow", views.slow),
    path("send/<queue>", views.send),
    path("stream/<int:seconds>", views.stream),
]
