"""``edge-rt chat``: a conversation on the terminal or through a pipe."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from edge_rt import conversation
from edge_rt.apps import options as o
from edge_rt.errors import EdgeRTError, UsageError
from edge_rt.sizes import format_size

_HELP = """\
/help          this list
/system TEXT   set the system message and start over
/reset         start over
/undo          take back the last question and answer
/save FILE     keep the conversation
/load FILE     go on with one that was kept
/ram SIZE      change the budget; the conversation stays
/stats         speed of the last answer and memory by role
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer; a second time at the prompt it leaves."""


class Conversation:
    """The messages so far, the engine that answers, and the /commands."""

    def __init__(self, engine: Any, system: str | None, max_tokens: int, options: dict[str, Any]):
        self.engine = engine
        self.max_tokens = max_tokens
        self.options = options  # of `Engine.chat`
        self.messages: list[dict[str, str]] = []
        self.last: Any = None
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        self.messages = [{"role": "system", "content": text}] if text else []

    def reset(self) -> None:
        system = self.messages[:1] if self.messages[:1] and self._has_system() else []
        self.messages = system

    def _has_system(self) -> bool:
        return self.messages[0]["role"] == "system"

    def ask(self, text: str) -> None:
        """Print the answer to ``text`` as it comes and remember both."""
        question = {"role": "user", "content": text}
        stream = self.engine.chat([*self.messages, question], self.max_tokens, **self.options)
        answer = []
        try:
            for piece in stream:
                answer.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            stream.close()
            o.catch_interrupt()
            print("\n(stopped)", end="")
        print(flush=True)
        self.last = stream.completion or self.last
        self.messages += [question, {"role": "assistant", "content": "".join(answer)}]

    def command(self, line: str) -> bool:
        """Run a /command; False ends the conversation."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        match name:
            case "exit" | "quit" | "bye":
                return False
            case "help":
                print(_HELP)
            case "system":
                self.set_system(argument or None)
            case "reset":
                self.reset()
            case "undo":
                if len(self.messages) >= 2 and self.messages[-1]["role"] == "assistant":
                    del self.messages[-2:]
                else:
                    print("nothing to undo")
            case "save":
                conversation.save(_file(argument), self.messages)
                print(f"{len(self.messages)} messages saved")
            case "load":
                limit = conversation.limit_bytes(self.engine.ctx)
                self.messages = conversation.load(_file(argument), limit)
                print(f"{len(self.messages)} messages loaded")
            case "ram":
                self.engine.resize(argument)
                print(f"budget {format_size(self.engine.memory()['budget'])}")
            case "stats":
                print(self.stats())
            case _:
                print(f"no command /{name}; /help lists them")
        return True

    def stats(self) -> str:
        memory = self.engine.memory()
        rows = [f"  {role:<12}{format_size(n):>12}" for role, n in memory["roles"].items()]
        head = f"held {o.held(memory['held'])} of {format_size(memory['budget'])}"
        if self.last is not None:
            s = self.last.stats
            head += f"; {s['decode_tok_s']:.1f} tok/s, first token after {s['ttft_s']:.2f} s"
            head += f", {format_size(s['flash_bytes_per_token'])} from flash per token"
        return "\n".join([head, *rows])


def chat(
    model: o.Model = None,
    ram: o.Ram = None,
    ctx: o.Ctx = None,
    system: o.System = None,
    template: o.Template = None,
    template_arg: o.TemplateArg = None,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", metavar="N")] = 512,
    temp: o.Temp = 0.7,
    top_k: o.TopK = 40,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.05,
    repeat_penalty: o.RepeatPenalty = 1.0,
    presence_penalty: o.PresencePenalty = 0.0,
    frequency_penalty: o.FrequencyPenalty = 0.0,
    seed: o.Seed = None,
    stop: o.Stop = None,
    threads: o.Threads = None,
    kv: o.Kv = "f16",
    io: o.Io = "auto",
    weight_cap: o.WeightCap = None,
) -> None:
    """Talk to the model. From a pipe, each line is a message."""
    source = o.read_template(template)
    options = {
        "template": source,
        "template_args": o.parse_template_args(template_arg),
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop or (),
    }
    path = o.model_path(model)
    with o.open_engine(
        path,
        ram,
        ctx=ctx,
        threads=threads,
        kv=kv,
        io=io,
        weight_cap=weight_cap,
    ) as engine:
        engine.template(source=source)  # say now if there is none, or if it is broken
        talk = Conversation(engine, system, max_tokens, options)
        interactive = sys.stdin.isatty()
        if interactive:
            _prepare_terminal()
            print(f"{path}: /help lists the commands, /exit or Ctrl-D leaves")
        while True:
            try:
                line = input("> " if interactive else "")
            except EOFError:
                break
            except UnicodeDecodeError as error:
                raise UsageError(f"a message is not UTF-8: {error.reason}") from None
            if not line.strip():
                continue
            try:
                _check(line)
                if line.startswith("/"):
                    if not talk.command(line):
                        break
                else:
                    talk.ask(line)
            except EdgeRTError as error:
                if not interactive:
                    raise
                o.say(f"error: {o.printable(str(error))}")


def _file(argument: str) -> str:
    """The path after /save or /load."""
    if not argument:
        raise UsageError("the name of a file is missing: /save FILE, /load FILE")
    return os.path.expanduser(argument)


def _check(line: str) -> None:
    """Refuse bytes that are not UTF-8, which some locales let through as surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        reason = f"byte {ord(line[error.start]) & 0xFF:#x} at {error.start}"
        raise UsageError(f"a message is not UTF-8: {reason}") from None


def _prepare_terminal() -> None:
    """Line editing and history of this session where the platform has readline."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
