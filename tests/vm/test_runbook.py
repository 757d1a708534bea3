"""docs/runbook.md on a VM: its commands for what ops/alarm finds there."""

from tests.runbook import sections

from .vm import ProductionVm


def follow(vm: ProductionVm, problem: str) -> str:
    """Run the commands for a problem as the user that its section names; return what they print."""
    text = (vm.stack.folder / "docs/runbook.md").read_text()
    as_root = "As root:" in text.partition(f"\n## {problem}\n")[2].partition("\n## ")[0]
    commands = f"set -e\n{sections(vm.stack.folder)[problem]}"
    return vm.run("sh", "-c", f"cd {vm.folder}\n{commands}") if as_root else vm.here(commands)


def test_each_command_of_the_runbook_works_on_a_vm(vm: ProductionVm) -> None:
    services = set(vm.running())
    assert "web-b" in follow(vm, "site-down")
    assert '"Health"' in follow(vm, "container-unhealthy")
    assert '"OOMKilled": false' in follow(vm, "container-restarts")
    assert "backup@" in follow(vm, "backup-old")
    assert vm.here("ls backups/*.tar")
    assert "Images" in follow(vm, "disk-full")
    follow(vm, "certificate-expires")
    assert "alarm@" in follow(vm, "vm-silent")
    assert "active (running)" in follow(vm, "engine-gone")
    vm.wait_until_healthy(services)
