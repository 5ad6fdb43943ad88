"""`python -m bench.readme [--check]`: puts the figures of bench/results into README and docs, or checks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "decode_128": "decode", "decode_1024": "at 1,024", "prefill_512": "prefill", "decode_8_together": "8 together",
    "decode_32_together": "32",
}  # fmt: skip
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def results() -> dict[str, dict[str, Any]]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "bench" / "results").glob("*.json"))}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The README's table; a line for each figure that has been measured."""
    rows: list[tuple[str, str, str]] = []
    if q := found.get("quickstart"):
        rows.append(
            ("quickstart after installation", f"{q['seconds'] / 60:.1f} min, {q['cpu_minutes']} CPU-min", "quickstart")
        )
        scores = q["finetune"]
        line = ", ".join(
            f"{name.replace('_', '-')} {100 * scores[name]['mean']:.1f} %"
            for name in ("zero_shot", "few_shot", "majority", "tfidf", "tuned")
        )
        rows.append(("LoRA on the built-in task, 300 held out", line, "quickstart"))
        b = q["bits_per_byte"]
        line = f"{b['model']:.3f}; a trigram on the same tokens {b['trigram']:.3f}; xz -9 {b['xz']:.3f}"
        rows.append(("bits per byte of the model built there", line, "quickstart"))
        ended = q["ended_turn"]["tuned"]
        rows.append(("it ends its turn by itself", f"{ended['ended']} of {ended['of']} unseen prompts", "quickstart"))
    if p := found.get("parity"):
        ours, peer = p["quantised_against_fp32"], p["llama_cpp_quantised_against_fp32"]
        rows.append(("64 greedy tokens as llama.cpp's, F32", p["greedy_64_same_as_llama_cpp_on_f32"], "parity"))
        line = f"{ours['mean_kl']:.1e} nats (llama.cpp {peer['mean_kl']:.1e})" if isinstance(peer, dict) else ""
        rows.append(("mean KL of the Q4_1 file against fp32", line or f"{ours['mean_kl']:.1e} nats", "parity"))
        rows.append(
            ("largest logit difference to transformers", f"{p['transformers_max_logit_difference']:.1e}", "parity")
        )
    rows += forms(found)
    rows += engine(found)
    rows += building(found)
    rows += tuning(found)
    rows += serving(found)
    if s := found.get("speed"):
        line = f"{s['decode_tokens_per_second']:.0f} tok/s decode, {s['prefill_tokens_per_second']:.0f} prefill"
        rows.append((f"default model, {s['threads']} threads", line, "speed"))
    if s := found.get("startup"):
        seconds = s["cpu_seconds_median"]
        rows.append(("`--help`, `models list`", f"{seconds['help']} s, {seconds['models list']} s CPU", "startup"))
    if not rows:
        return ""
    machine = next(iter(found.values()))["machine"]
    body = "\n".join(f"| {what} | {value} | `./ladder prove {name}` |" for what, value, name in rows)
    dates = sorted({r["date"] for r in found.values()})
    return (
        f"On {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {' to '.join(dates)} "
        f"(details and versions in bench/results):\n\n| what | measured | by |\n|---|---|---|\n{body}\n"
    )


def forms(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines about the forms that a model is exported to."""
    rows = []
    if g := found.get("gguf"):
        a, p = g["f16_top_1_agreement"], g["f16_perplexity"]
        low, high = a["interval"]
        line = f"{100 * a['share']:.2f} % [{100 * low:.2f}, {100 * high:.2f}] of {a['tokens']:,} tokens"
        rows.append(("llama.cpp on our F16 export says the same token", line, "gguf"))
        rows.append(("its perplexity there, ours over theirs", f"{p['ratio']:.5f}", "gguf"))
    if q := found.get("quantise"):
        int4, gain = q["forms"]["int4 gptq"], q["int4_gptq_over_rtn"]
        up = int4["perplexity_increase"]
        line = f"{100 * up['mean']:+.2f} % [{100 * up['low']:+.2f}, {100 * up['high']:+.2f}] perplexity"
        share = f"{100 * int4['share_of_16_bits']:.1f} % of the bytes of 16 bits"
        rows.append(("our own 26.7 M model in int4 (GPTQ)", f"{line}, {share}", "quantise"))
        line = f"{100 * gain['mean']:+.2f} % [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
        rows.append(("calibrated against rounding to nearest", line, "quantise"))
    if b := found.get("bundle"):
        half = b["float16"]
        line = f"{half['greedy_64_as_engine']} of {b['prompts']}; {half['tokens_per_second']:.0f} tok/s"
        rows.append(("the two-file bundle, numpy alone: 64 greedy tokens as the engine's", line, "bundle"))
    return rows


def engine(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines about the engine against llama.cpp on the same file and threads."""
    rows = []
    for tier, name in (("native", "built for this processor"), ("avx2", "and we held to AVX2")):
        for model, one in found.get("engine", {}).get(tier, {}).items():
            work = one["work"] if isinstance(one, dict) else {}
            named = [(what, work.get(column, {})) for column, what in COLUMNS.items()]
            ratios = {what: figures["llama.cpp_ratio"] for what, figures in named if "llama.cpp_ratio" in figures}
            if ratios:
                line = ", ".join(f"{what} {ratio:.1f} x" for what, ratio in ratios.items())
                rows.append((f"{model} against llama.cpp {name}", line, "engine"))
    return rows


def building(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines about the way from raw text to a model."""
    rows = []
    if p := found.get("prepare"):
        near = p["near_duplicates"]
        line = f"{p['mb_per_cpu_second']} MB a CPU-second, {p['times_faster']:.0f} x datatrove + datasketch"
        rows.append(("text cleaned and deduplicated", line, "prepare"))
        line = f"recall {near['recall']:.4f}, precision {near['precision']:.4f}"
        rows.append((f"near-duplicates among {near['groups']:,} groups", line, "prepare"))
    if p := found.get("pii"):
        ours, peer = (p["shared"][who]["all"]["f1"] for who in ("ours", "presidio"))
        rows.append(("personal data found, F1", f"{ours:.3f}; presidio's patterns {peer:.3f}", "pii"))
    if t := found.get("tokenizer"):
        low, *_, high = sorted(e["ratio_to_tokenizers"] for e in t["encoding"].values())
        line = (
            f"trains {t['training']['ratio_to_tokenizers']['ours']:.1f} x, encodes {low:.0f} to {high:.0f} x tokenizers"
        )
        rows.append(("byte-level BPE, the same ids", line, "tokenizer"))
    for name in ("timetoloss", "timetoloss_large"):
        if t := found.get(name):
            runs = sorted(t["speedups"])
            size, minutes = t["parameters"]["ours"] / 1e6, t["budget_cpu_seconds"] / 60
            spread = f"[{runs[0]:.1f}, {runs[-1]:.1f}] over {len(runs)} seeds" if len(runs) > 1 else "(one seed)"
            line = f"{t['speedup']:.1f} x as fast {spread}"
            rows.append((f"to nanoGPT's loss after {minutes:.0f} min of a core, {size:.1f} M weights", line, name))
    if t := found.get("trainspeed"):
        speeds = {size: rows["ours"]["over_trainer"] for size, rows in t["sizes"].items()}
        narrow = {size: rows["ours, bf16"]["over_trainer"] for size, rows in t["sizes"].items()}
        line = f"{min(speeds.values()):.1f} x in fp32, {min(narrow.values()):.1f} x in bf16, or more"
        rows.append(("tokens a second, transformers' Trainer in fp32 being 1", line, "trainspeed"))
    if o := found.get("objectives"):
        m = o["masked_and_pairs"]
        line = (
            f"{m['masked_accuracy']:.1%} (commonest token {m['unigram_accuracy']:.1%}, left neighbour's follower "
            f"{m['bigram_accuracy']:.1%}); pairs {m['next_accuracy']:.1%}"
        )
        rows.append((f"masked tokens found after {m['seconds'] / 60:.0f} min, 2.5 M weights", line, "objectives"))
    if d := found.get("domain"):
        kept, lost = d["with_replay"], d["without_replay"]["general"]["difference"]["mean"]
        line = (
            f"{kept['held_out']['difference']['mean']:+.2f} bits per byte; on general text "
            f"{kept['general']['difference']['mean']:+.2f}, without replay {lost:+.2f}"
        )
        rows.append(("a base model goes on with medical texts", line, "domain"))
    if p := found.get("plan"):
        line = (
            f"memory within {p['memory_error_median']:.0%} (worst {p['memory_error_worst']:.0%}), CPU time within "
            f"{p['cpu_seconds_error_median']:.0%} (worst {p['cpu_seconds_error_worst']:.0%})"
        )
        rows.append(("five pretrainings foretold", line, "plan"))
    if s := found.get("scaling"):
        times = s["larger"]["times_the_work_of_the_largest"]
        line = f"{s['error']:+.1%}, {times:.1f} times the work of the largest run in the fit"
        rows.append(("a larger run's loss foretold", line, "scaling"))
    if c := found.get("languages"):
        line = f"{c['right']['count']} of {c['right']['of']} sentences, {len(c['languages'])} languages"
        rows.append(("language told by the fewest bits, a small model each", line, "languages"))
    return rows


def tuning(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines about fine-tuning and alignment."""
    rows = []
    if f := found.get("finetune"):
        line = (
            f"{f['speed_over_trl_packed']:.1f} x the tokens a second, {f['memory_over_trl_packed']:.2f} of the memory"
        )
        rows.append((f"LoRA, {f['model']}, beside trl + peft with packing", line, "finetune"))
        line = f"{f['qlora_memory_over_lora']:.2f} of LoRA's memory"
        rows.append((f"QLoRA, {f['large_model']}", line, "finetune"))
    if t := found.get("tasks"):
        for name, task in t["tasks"].items():
            scores = ", ".join(f"{arm} {score['mean']:.2f}" for arm, score in task["scores"].items())
            rows.append((f"{name}, {task.get('minutes_each', t.get('minutes_each')):.0f} min each", scores, "tasks"))
    if d := found.get("dpo"):
        polite, harmless = d["polite"]["gained"]["mean"], d["harmless"]["length_matched"]
        line = f"polite {polite:.1%}; harmless, of one length {harmless['mean']:.1%} [{harmless['low']:.1%}, "
        rows.append(("DPO: pairs whose chosen answer gained", line + f"{harmless['high']:.1%}]", "dpo"))
    if g := found.get("grpo"):
        sides = {name: g[name]["reward"] for name in ("arithmetic", "json")}
        line = "; ".join(f"{name} {r['before']['mean']:.1%} to {r['after']['mean']:.1%}" for name, r in sides.items())
        rows.append(("GRPO, 500 unseen problems", line, "grpo"))
    if p := found.get("ppo"):
        reward, judged = p["ppo"]["reward"], p["ppo"]["judged"]
        line = (
            f"reward {reward['before']['mean']:.3f} to {reward['after']['mean']:.3f}, an unseen judge's "
            f"{judged['before']['mean']:.3f} to {judged['after']['mean']:.3f}"
        )
        rows.append(("PPO, held-out instructions", line, "ppo"))
    if h := found.get("harm"):
        sides, refused, reward = h["harmful"], h["xstest_safe_refused"], h["reward"]["difference"]
        line = (
            f"{sides['before']['mean']:.0%} to {sides['after']['mean']:.0%}; of XSTest's safe prompts refused "
            f"{refused[0]:.0%} to {refused[1]:.0%}; reward {reward['mean']:+.2f} [{reward['low']:+.2f}, "
            f"{reward['high']:+.2f}]"
        )
        rows.append(("DPO on harmless pairs: HarmBench prompts not refused", line, "harm"))
    if c := found.get("climb"):
        rows.append(("`climb` on SST-2", f"{c['minutes']:.0f} min; {c['sentence']}", "climb"))
    if s := found.get("shuffled"):
        helped = sum(row["verdict"] == "helped" for row in s["seeds"])
        rows.append(("labels that mean nothing called a help", f"{helped} of {len(s['seeds'])} runs", "shuffled"))
    return rows


def serving(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines about the server."""
    rows = []
    if (load := found.get("load")) and "llama-server" in load["clients_8"]:
        for clients in (8, 32):
            ours, peer = (load[f"clients_{clients}"][name] for name in ("ladderlm", "llama-server"))
            line = (
                f"{ours['tokens_per_second']:.0f} tok/s, {ours['tokens_per_second'] / peer['tokens_per_second']:.1f} x "
                f"llama-server; first token (p95) {ours['first_p95']:.2f} s, there {peer['first_p95']:.2f} s"
            )
            rows.append((f"{clients} clients of the default model, {load['threads']} threads", line, "load"))
    if k := found.get("chaos"):
        line = f"{k['lost']} of {k['acknowledged']} acknowledged files lost; up again in {k['restart_seconds']} s"
        rows.append((f"killed {k['kills']} times amid 100 streams", line, "chaos"))
    if c := found.get("clients"):
        calls = [how for client in c["routes"].values() for how in client.values()]
        line = f"{calls.count('ok')} of {len(calls)}; lm-eval over HTTP as in process"
        rows.append((f"calls of {len(c['routes'])} clients, unmodified", line, "clients"))
    if s := found.get("schemas"):
        done = s["outcomes"].get("valid", 0) + s["outcomes"].get("invalid", 0)
        line = (
            f"{done / s['schemas']:.1%} complete within 512 tokens, {s['outcomes'].get('invalid', 0)} of them invalid"
        )
        line += f", {s['outcomes'].get('refused', 0)} refused; masks {s['mask_share']:.1%} of decoding"
        rows.append((f"{s['schemas']} random JSON schemas", line, "schemas"))
    return rows


def by_size(found: dict[str, dict[str, Any]]) -> str:
    """Speed, memory and loading of models of growing size; "" before they are measured."""
    if not (sizes := found.get("sizes")):
        return ""
    rows = []
    for name, one in sizes.items():
        if not isinstance(one, dict) or "work" not in one:
            continue
        decode, prefill, fresh = one["work"]["decode_128"], one["work"].get("prefill_512"), one["fresh"]
        read = f"{prefill['ladderlm']:,.0f} ({prefill['llama.cpp']:,.0f})" if prefill else ""
        cells = (
            name.upper(), f"{one['weight_bytes'] / 1e6:,.0f} MB",
            f"{decode['ladderlm']:,.1f} ({decode['llama.cpp']:,.1f})", read, f"{100 * decode['share']:.0f} %",
            f"{fresh['load_seconds']:.1f} s", f"{fresh['peak_bytes'] / 1e6:,.0f} MB",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |\n")
    machine = sizes["machine"]
    head = (
        "| weights | in 4 bits | tok/s, one sequence | tok/s, prompt of 512 | of the bandwidth | load | peak memory |"
    )
    where = f"{machine['cores']} cores of {machine['cpu']}, {sizes['date']}"
    said = f"Random Llama-style models at Q4_0 on {where}; in brackets llama.cpp built for it, in the same run:"
    return f"{said}\n\n{head}\n|---|---|---|---|---|---|---|\n{''.join(rows)}"


def by_part(found: dict[str, dict[str, Any]]) -> str:
    """What each part of the pretraining recipe gives; "" before it is measured."""
    if not (t := found.get("timetoloss")):
        return ""
    machine, seconds = t["machine"], t["budget_cpu_seconds"]
    where = f"one core of {machine['cpu']}, {t['date']}"
    rows = [
        f"| {'' if row['without'] == 'the recipe' else 'without: '}{row['without']} | {row['bits_per_byte']:.3f} | "
        f"{row['tokens'] / 1e6:.2f} M |\n"
        for row in t["without"]
    ]  # fmt: skip
    low, *_, high = sorted(t["speedups"])
    return (
        f"{t['parameters']['ours'] / 1e6:.1f} M weights on {where}. The loss that nanoGPT's recipe ends at after "
        f"{seconds / 60:.0f} minutes is reached {t['speedup']:.1f} times as fast ({low:.1f} to {high:.1f} over "
        f"{len(t['speedups'])} seeds). Each part taken away alone, {seconds / 3:.0f} seconds, one seed, the rates left "
        f"as they are:\n\n| recipe | bits per byte | tokens read |\n|---|---|---|\n{''.join(rows)}"
    )


PAGES: dict[str, Callable[[dict[str, dict[str, Any]]], str]] = {
    "README.md": table,
    "docs/engine.md": by_size,
    "docs/build.md": by_part,
}


def main() -> int:
    found, differ = results(), 0
    for name, make in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        wanted = f"{head}{BEGIN}\n{make(found)}{END}{rest.split(END)[1]}"
        differ += wanted != text
        if "--check" not in sys.argv:
            page.write_text(wanted, encoding="utf-8")
    return int("--check" in sys.argv and differ > 0)


if __name__ == "__main__":
    sys.exit(main())
