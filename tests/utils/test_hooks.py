"""Recording of forward passes, and the removal of its hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparkmim.utils.hooks import record_calls, running_modules


def network() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), nn.Identity())


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_calls_are_recorded_as_they_return() -> None:
    module, x = network(), torch.randn(2, 3)
    with record_calls(module.named_modules(), lambda call: call) as calls:
        out = module(x)
        module[2](x)
    assert [call.name for call in calls] == ["0", "1.0", "1.1", "1", "2", "", "2"]
    assert all(call.module is module.get_submodule(call.name) for call in calls)
    assert calls[0].args == (x,)
    assert calls[5].output is out
    module(x)
    assert len(calls) == 7
    assert hooks(module) == 0


def test_records_are_read_before_the_next_operation_writes() -> None:
    module, x = network(), torch.tensor([[-1.0, 2.0]])
    with record_calls([("flatten", module[1][0])], lambda call: call.output.tolist()) as records:
        module(x.clone())
    assert records == [[[-1.0, 2.0]]]


@pytest.mark.parametrize("prepend", [True, False])
def test_prepend_runs_before_hooks_that_are_there(prepend: bool) -> None:
    module = nn.Identity()
    module.register_forward_hook(lambda module, args, output: output + 1)
    with record_calls([("", module)], lambda call: call.output, prepend=prepend) as records:
        module(1)
    assert records == [1 if prepend else 2]


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_hooks_are_removed_after_an_error() -> None:
    module = nn.Sequential(nn.Identity(), Failing())
    for recorder in (record_calls(module.named_modules(), lambda call: call.name), running_modules(module)):
        with pytest.raises(RuntimeError, match="no"), recorder:
            module(torch.zeros(1))
        assert hooks(module) == 0


def test_running_modules_are_a_stack() -> None:
    module = network()
    seen: list[list[str]] = []
    running: list[str]
    module[1][1].register_forward_hook(lambda *_: seen.append(list(running)))
    module[2].register_forward_pre_hook(lambda *_: seen.append(list(running)))
    with running_modules(module) as running:
        module(torch.zeros(1, 2))
        assert running == []
    assert seen == [["", "1", "1.1"], [""]]  # the hook before a module's own entry sees those around it


def test_running_modules_leave_the_stack_on_an_error() -> None:
    module = nn.Sequential(Failing())
    with running_modules(module) as running:
        with pytest.raises(RuntimeError, match="no"):
            module(torch.zeros(1))
        assert running == []
