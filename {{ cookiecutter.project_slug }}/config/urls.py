from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path
from django.views.generic import TemplateView

urlpatterns = [
    path("", TemplateView.as_view(template_name="home.html"), {"debug": settings.DEBUG}),
    path("admin/", admin.site.urls),
    path("status/", include("stack.dashboard.urls")),
    *staticfiles_urlpatterns(),  # with DEBUG only; in production the proxy has the files
]
if "debug_toolbar" in settings.INSTALLED_APPS:
    urlpatterns += [path("__debug__/", include("debug_toolbar.urls"))]
