"""Files and uploads on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.services.dataset import MAX_PROBLEMS, Report
from jobs.services.uploads import Shown
from jobs.tables import File, Part


class FileObject(Listed):
    """A file, uploaded or a result of a job."""

    id: str = Field(examples=["file-0197..."])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = Field(
        "processed",
        description="A file is checked while it is uploaded. `error`: it came in parts and is no dataset; `uploaded`: "
        "a result file that is still being written.",
    )
    expires_at: int | None = None
    status_details: str | None = Field(None, description="The first problem of a file with status error.")


class FileDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class RowProblem(BaseModel):
    """Why a line of a dataset cannot be used."""

    line: int = Field(description="From 1.")
    param: str | None = Field(description="Path within the row.")
    message: str
    code: str


class DatasetStatistics(BaseModel):
    """What the good rows hold."""

    prompts: int = Field(description="Rows that end with the user's message, for reinforcement.")
    answered: int = Field(description="Rows that end with the assistant's, for supervised.")
    preferences: int = Field(description="Rows with two answers, for dpo.")
    messages_mean: float | None = Field(description="Messages of a row.")
    messages_max: int
    characters_mean: float | None = Field(description="Characters of all messages of a row.")
    characters_max: int


class FileValidation(BaseModel):
    """What a file is worth as a dataset."""

    object: Literal["file.validation"] = "file.validation"
    file_id: str
    valid: bool
    rows: int = Field(description="Lines that hold something.")
    problems: list[RowProblem] = Field(description=f"The first {MAX_PROBLEMS}, one for each line.")
    problem_count: int
    statistics: DatasetStatistics


class UploadObject(Listed):
    """A file that comes in parts."""

    id: str = Field(examples=["upload_0197..."])
    object: Literal["upload"] = "upload"
    bytes: int = Field(description="As announced.")
    created_at: int
    expires_at: int = Field(description="It takes parts until then.")
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = Field(description="Of a completed upload.")


class PartObject(Listed):
    """A part of an upload."""

    id: str = Field(examples=["part_0197..."])
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def file_object(file: File) -> FileObject:
    """A row as the wire has it."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        status="error" if file.problem is not None else "processed" if file.sha256 else "uploaded",
        expires_at=None if file.expires_at is None else int(file.expires_at),
        status_details=file.problem,
    )


def file_validation(file_id: str, report: Report) -> FileValidation:
    """A report as the wire has it."""
    good = sum(report.kinds.values())
    problems = [
        RowProblem(line=each.line, param=each.param, message=f"Line {each.line} {each.message}.", code=each.code)
        for each in report.problems
    ]
    return FileValidation(
        file_id=file_id,
        valid=good > 0 and not report.problem_count,
        rows=report.rows,
        problems=problems,
        problem_count=report.problem_count,
        statistics=DatasetStatistics(
            prompts=report.kinds["prompt"],
            answered=report.kinds["answered"],
            preferences=report.kinds["preference"],
            messages_mean=report.messages / good if good else None,
            messages_max=report.most_messages,
            characters_mean=report.characters / good if good else None,
            characters_max=report.most_characters,
        ),
    )


def upload_object(shown: Shown) -> UploadObject:
    """An upload as the wire has it."""
    return UploadObject(
        id=shown.row.id,
        bytes=shown.row.bytes,
        created_at=int(shown.row.created_at),
        expires_at=int(shown.row.expires_at),
        filename=shown.row.filename,
        purpose=shown.row.purpose,
        status=shown.state,
        file=None if shown.file is None else file_object(shown.file),
    )


def part_object(part: Part) -> PartObject:
    """A row as the wire has it."""
    return PartObject(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id)
