"""How far does it count? A stand-in for training: one line a step, resumed from what its `work` directory holds."""

import errno
import os
import signal
import time
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Settings of the stand-in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int = Field(1, ge=0)
    steps: int = Field(5, ge=1)
    fault: str = ""
    seconds: float = 0.0


def run(config: Config, *, work: Path) -> dict[str, object]:
    """Count, and fail as told; a fault strikes once, at step 3."""
    log, struck = work / "steps.txt", work.parent.parent / f"struck-{config.value}"
    done = log.read_text().splitlines() if log.exists() else []
    for step in range(len(done), config.steps):
        if step == 3 and config.fault and not struck.exists():
            struck.touch()
            if config.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.fault == "disk":
                raise OSError(errno.ENOSPC, "No space left on device", str(log))
            raise ValueError("the loss became NaN")
        time.sleep(config.seconds)
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
    lines = log.read_text().splitlines()
    table = pd.DataFrame({"step": range(len(lines)), "total": [config.value * i for i in range(len(lines))]})
    return {"curve": table, "total": config.value * config.steps, "processes": len(set(lines))}
