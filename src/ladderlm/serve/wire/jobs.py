"""Fine-tuning jobs. `settings` and the grader "checks" are ours; all else is the OpenAI API's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ladderlm.serve.wire.base import AsWhole, Object, Wire
from ladderlm.serve.wire.batches import Metadata

Auto = Literal["auto"]
Epochs = Auto | Annotated[int, Field(ge=1, le=1000), AsWhole]
BatchSize = Auto | Annotated[int, Field(ge=1, le=4096), AsWhole]
Multiplier = Auto | Annotated[float, Field(gt=0, le=1000)]
Beta = Auto | Annotated[float, Field(gt=0, le=100)]
Count = Annotated[int, Field(ge=1, le=10**6), AsWhole]


class Hyperparameters(Wire):
    n_epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    learning_rate_multiplier: Multiplier | None = None


class DpoHyperparameters(Hyperparameters):
    beta: Beta | None = None


class Supervised(Wire):
    hyperparameters: Hyperparameters | None = None


class Dpo(Wire):
    hyperparameters: DpoHyperparameters | None = None


class StringCheck(Wire):
    """`input` is the model's answer; `reference` may hold fields of the row: {{item.NAME}}."""

    type: Literal["string_check"]
    name: str
    input: str
    operation: Literal["eq", "ne", "like", "ilike"]
    reference: str


class OwnChecks(Wire):
    """Each row's own answer, pattern, schema or tests, as `ladderlm align --objective grpo` takes them."""

    type: Literal["checks"]
    name: str | None = None


class Reinforcement(Wire):
    grader: Annotated[StringCheck | OwnChecks, Field(discriminator="type")]
    hyperparameters: Hyperparameters | None = None


class Method(Wire):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class Settings(Wire):
    """Settings of the commands `finetune` and `align`, by their own names."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["lora", "rslora", "dora", "qlora", "ia3", "prompt", "prefix", "head", "last", "full"] | None = None
    objective: Literal["dpo", "ipo", "kto", "orpo", "simpo"] | None = None
    rank: Count | None = None
    alpha: Annotated[float, Field(gt=0, le=10**6)] | None = None
    layers_trained: Count | None = None
    virtual_tokens: Count | None = None
    steps: Count | None = None
    minutes: Annotated[float, Field(gt=0, le=10**5)] | None = None
    batch_tokens: Count | None = None
    max_length: Count | None = None
    cut: bool | None = None
    lr: Annotated[float, Field(gt=0, le=10)] | None = None
    warmup: Annotated[int, Field(ge=0, le=10**6), AsWhole] | None = None
    cooldown: Annotated[float, Field(ge=0, le=1)] | None = None
    samples: Annotated[int, Field(ge=2, le=1024), AsWhole] | None = None
    prompts: Count | None = None
    max_tokens: Count | None = None
    skip_bad: bool | None = None
    threads: Annotated[int, Field(ge=1, le=1024), AsWhole] | None = None
    licence: Annotated[str, Field(max_length=200)] | None = None


class JobBody(Wire):
    model: str
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1), AsWhole] | None = None
    integrations: list[Any] | None = None
    metadata: Metadata | None = None
    settings: Settings | None = None

    @property
    def kind(self) -> Literal["supervised", "dpo", "reinforcement"]:
        return self.method.type if self.method else "supervised"

    @property
    def hyper(self) -> Hyperparameters:
        """Of the method; the field beside it is the older place for them."""
        chosen = getattr(self.method, self.kind) if self.method else None
        return (chosen and chosen.hyperparameters) or self.hyperparameters or Hyperparameters()


class JobError(Wire):
    code: str
    message: str
    param: str | None = None


class Estimate(Wire):
    """What a job will take, before it began. Tokens are counted on a part of the rows. `seconds` is known where a job
    of the same model and method has ended before; `memory_bytes` is worked out, not measured."""

    records: int
    tokens_per_epoch: int
    trained_tokens: int
    steps: int | None
    memory_bytes: int
    seconds: int | None


class JobObject(Wire):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    created_at: int
    finished_at: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None = None
    hyperparameters: Object
    method: Object
    result_files: list[str]
    trained_tokens: int | None = None
    seed: int
    error: JobError | None = None
    estimated_finish: int | None = None
    integrations: list[Any] | None = None
    metadata: dict[str, str] | None = None
    user_provided_suffix: str | None = None
    settings: Object | None = None
    estimate: Estimate | None = None
    run: str | None = None


class JobList(Wire):
    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class EventObject(Wire):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Object


class EventList(Wire):
    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class CheckpointMetrics(Wire):
    step: float | None = None
    train_loss: float | None = None
    full_valid_loss: float | None = None


class CheckpointObject(Wire):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class CheckpointList(Wire):
    object: Literal["list"] = "list"
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
