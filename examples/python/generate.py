"""Generation with lynx_rt: several prompts at once, a stream, and batch-aware expert selection.

python examples/python/generate.py [MODEL_FOLDER]
"""

import sys

import lynx_rt

QUESTIONS = ["Q: 12 times 22 = ?\nA:", "Q: 345 + 678 = ?\nA:", "Q: 1000 - 27 = ?\nA:"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else lynx_rt.shipped_model()
    greedy = lynx_rt.SamplingParams(temperature=0.0, max_tokens=32)
    with lynx_rt.Engine(model) as engine:
        print("one after another, as it comes:")
        for output in engine.stream(QUESTIONS[0], greedy):
            print(output.outputs[0].delta_text, end="", flush=True)
        print()

        for selection in ("topk", "lynx"):
            engine.set_expert_selection(selection)
            engine.reset_stats()
            print(f"together, expert selection {engine.expert_selection}:")
            for question, output in zip(QUESTIONS, engine.generate(QUESTIONS, greedy, use_tqdm=False), strict=True):
                print(f"  {question!r} -> {output.text!r}")
            experts = engine.expert_stats()
            print(f"  experts read per layer and step: {experts.active:.2f} of {experts.num_experts}", end="")
            print(f" ({experts.union_before:.2f} without selection)")


if __name__ == "__main__":
    main()
