"""Hand a program and its plan to the C++ runtime."""

from __future__ import annotations

from edge_rt.flash_io._flash_io import File
from edge_rt.plan import Plan
from edge_rt.planner import Planner
from edge_rt.program import LOGITS, ROPE, MatrixUse, Operation, Program, X
from edge_rt.runtime._runtime import Arena, Runtime
from edge_rt.tiles import Tile


def assemble(planner: Planner, plan: Plan, arena: Arena, file: File, isa: str, io: str) -> Runtime:
    """Build a `Runtime` that executes ``planner.program`` as ``plan`` laid it out; loads
    nothing."""
    program, settings = planner.program, plan.settings
    runtime = Runtime(
        arena,
        file,
        isa=isa,
        n_threads=plan.n_threads,
        io=io,
        max_tokens=plan.pass_tokens,
    )
    buffers = {
        name: runtime.add_buffer(
            offset=plan.buffers[name], width=width, quantized=name.endswith(".q8")
        )
        for name, width in program.buffers.items()
    }
    for name, vector in program.vectors.items():
        runtime.add_vector(
            file_offset=vector.file_offset,
            format=vector.format.ggml_id,
            n=vector.n,
            arena_offset=plan.vector_offsets[name],
            offset=vector.offset,
        )
    for index, rope in enumerate(program.hyper.ropes):
        frequencies = rope.for_ctx(settings.ctx)
        runtime.add_rope_table(buffers[f"{ROPE}{index}"], frequencies, rope.magnitude)
    tiles_of = planner.cut(plan.tile_bytes).of_matrix
    for index, matrix in enumerate(program.matrices):
        _add_weight(runtime, tiles_of[index], plan, index, matrix)
    for segment, operations in enumerate(program.operations):
        for operation in operations:
            _add_operation(runtime, plan, buffers, segment, operation)
    _set_attention(runtime, program, plan)
    runtime.set_embedding(
        file_offset=program.embedding.offset,
        format=program.embedding_format.ggml_id,
        n_rows=program.n_vocab,
        n_cols=program.hyper.hidden,
        buffer=buffers[X],
        staging_offset=plan.staging_offset,
        staging_bytes=plan.staging_bytes,
    )
    runtime.set_scratch(offset=plan.scratch_offset, bytes_per_thread=plan.scratch_bytes)
    runtime.set_logits(buffers[LOGITS], plan.logit_rows)
    if plan.trace_bytes:
        runtime.set_trace(plan.trace_offset, plan.trace_bytes)
    runtime.finish(ring_offset=plan.ring_offset, ring_bytes=plan.ring_bytes)
    return runtime


def _add_weight(
    runtime: Runtime, tiles_of_it: list[Tile], plan: Plan, index: int, matrix: MatrixUse
) -> None:
    tiles, streamed = [], []
    for tile in tiles_of_it:
        offset = plan.tile_offsets.get((index, tile.row), -1)
        tiles.append((tile.row, tile.n_rows, offset))
        if offset < 0:
            streamed.append((tile.file_offset, tile.n_bytes))
    runtime.add_weight(
        format=matrix.format.ggml_id,
        n_rows=matrix.n_rows,
        n_cols=matrix.n_cols,
        segment=matrix.segment,
        tiles=tiles,
        streamed=streamed,
    )


def _add_operation(
    runtime: Runtime, plan: Plan, buffers: dict[str, int], segment: int, operation: Operation
) -> None:
    runtime.add_op(
        segment=segment,
        kind=operation.kind,
        src=buffers.get(operation.src, -1),
        src2=buffers.get(operation.src2, -1),
        dst=buffers.get(operation.dst, -1),
        vector_offset=plan.vector_offsets.get(operation.vector, -1),
        layer=operation.layer,
        value=operation.value,
        width=operation.width,
        window=operation.window,
        cap=operation.cap,
        parts=[
            (part.matrix, buffers[part.src], buffers[part.dst], part.accumulate)
            for part in operation.parts
        ],
    )


def _set_attention(runtime: Runtime, program: Program, plan: Plan) -> None:
    hyper = program.hyper
    runtime.set_attention(
        n_heads=hyper.n_heads,
        n_kv_heads=hyper.n_kv_heads,
        head_dim=hyper.head_dim,
        n_ctx=plan.settings.ctx,
        kv_format=plan.settings.kv,
        rope_halves=hyper.rope_halves,
        kv_offset=plan.kv_offset,
        spans_offset=plan.spans_offset,
        kv_positions=plan.kv_positions,
        temperature=hyper.temperature,
        temperature_length=hyper.temperature_length,
    )
