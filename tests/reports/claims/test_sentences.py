"""The sentences that a reviewer can quote: made from the numbers, and true of no more than those."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clmem.harness.results.record import RunResult
from clmem.reports.claims.claim import Claim, load_claim
from clmem.reports.claims.measurements import measurements_of
from clmem.reports.claims.page import claim_json, page, terminal
from clmem.reports.claims.sentences import verdict

MakeRun = Callable[..., RunResult]


def test_the_verdict_leads_with_what_is_measured_at_the_claims_own_point(claim: Claim, runs: list[RunResult]) -> None:
    first, second, *_ = verdict(claim, measurements_of(claim, runs))
    assert first.startswith(
        "Claimed: 6.16x less memory for LightCL 0.9 than for SparCL-DER++ 0.9, on TinyImageNet at batch 32"
    )
    # 600 MiB of the process are not tensors
    assert "have the ratio 6.00x (2.25x) plain." in first
    assert "plain is our implementation as PyTorch carries it out" in second
    assert "0.9 in a name is the part of the weights that is to be zero" in second


def test_the_verdict_says_what_was_claimed_recomputed_and_measured(claim: Claim, runs: list[RunResult]) -> None:
    text = "\n".join(verdict(claim, measurements_of(claim, runs)))
    assert "6.16x is 536.8 MB (SparCL-DER++ 0.9) over 87.1 MB (LightCL 0.9)" in text
    assert "22 of 22 memory cells" in text
    assert "2 memory cells and 2 FLOPs cells are fitted after the fact" in text
    assert "1,200.0 and 200.0 MiB on TinyImageNet, a ratio of 6.00x" in text
    assert "Not measured on cpu: the headline's rows in execution `released`." in text
    assert "class-IL 9.12±1.02 against 8.95±0.35 on TinyImageNet" in text
    assert (
        "better than LightCL 0.9 on average are: class-IL on CIFAR-10 JOINT (94.67±0.15), EWC (40.42±3.81), ER" in text
    )
    assert "class-IL on TinyImageNet JOINT (61.38±0.12), SGD (10.63±0.36), EWC (11.17±1.55), FDR (10.80±0.71)" in text
    assert "give 4.11x (SGD on TinyImageNet) to 8.69x (DER++ on CIFAR-10), those of the other rows 1.47x" in text
    assert "to 12.96x (PNN on CIFAR-10). 6.16x is not the table's largest." in text
    assert "SparCL-DER++ 0.9 0.19 (counted: 1.00 plain) and LightCL 0.9 0.31" in text
    assert "at most 16.00x below SGD run plainly on TinyImageNet (40.0 of 640.0 MiB), at batch 32." in text


def test_the_surface_is_put_in_words_pair_by_pair(claim: Claim, runs: list[RunResult]) -> None:
    own, others = (
        text for text in verdict(claim, measurements_of(claim, runs)) if text.startswith("At batches of 32 to 64")
    )
    assert "reaches 6.16x in 1 of 2 measured combinations: on TinyImageNet remembering 15 samples at batch 64." in own
    assert "over LightCL, which has none, it is reached in 0 of 2." in own
    assert (
        "SGD over LightCL or LightCL 0.9 in 0 of 4 (at most 6.10x); "
        "SparCL-DER++ 0.9 over LightCL in 0 of 2 (at most 6.00x)" in others
    )


def test_what_only_its_own_rows_have_is_not_said_of_another_claim(run: MakeRun) -> None:
    other = load_claim("sparcl")
    text = "\n".join(verdict(other, measurements_of(other, [run("derpp", 1190.0), run("sparcl-derpp", 1200.0)])))
    assert "Implied: 1.55x" not in text, "it is a ratio on CIFAR-10, where nothing was measured"
    assert "reaches 1.55x in 0 of 1 measured combinations." in text
    assert "zeros too" not in text
    assert "those of the other rows 0.76x." in text


def test_corrections_are_put_in_words_together(claim: Claim) -> None:
    chosen = [claim.fix("lightcl-dense"), claim.fix("sparcl-dense"), claim.fix("tiny-head")]
    (sentence,) = [text for text in verdict(claim, [], chosen) if "recomputed 6.17x" in text]
    assert sentence.startswith(
        "With 3 corrections (lightcl-dense, sparcl-dense, tiny-head) the recomputed 6.17x becomes 5."
    )
    assert "lightcl-dense 4.19x, sparcl-dense 8.01x. The other one alone changes it by less than 0.01x." in sentence
    assert claim_json(claim, [], chosen)["headline"]["corrected"] == pytest.approx(5.45, abs=0.1)
    assert "recomputed, 5." in terminal(claim, [], chosen)


def test_accuracies_are_shown_with_the_conditions_they_were_measured_under(
    claim: Claim, runs: list[RunResult], accuracy_run: MakeRun
) -> None:
    learnt = [
        accuracy_run(method, seed, [[share + seed / 100]], [[0.9]], stream="split-fashion-mini", config={})
        for method, share in (("sparcl-derpp", 0.5), ("lightcl-sparse", 0.2), ("head-only", 0.1))
        for seed in (0, 1)
    ]
    for result in learnt:
        result.method_config = {"sparsity": 0.9, "trunk": "auto"}
    (measurements,) = measurements_of(claim, [*runs, *learnt])
    assert [row.id for section in measurements.learnt for row, _ in measurements.learners(section)] == [
        "sparcl-derpp",
        "lightcl-sparse",
    ]
    (sentence,) = [text for text in verdict(claim, [measurements]) if text.startswith("Measured accuracy")]
    assert "not under the claim's conditions but on split-fashion-mini, resnet18 (width 16)" in sentence
    assert "; LightCL 0.9 without pretrained weights, remembering 15 images; mean" in sentence
    assert (
        "over 2 seeds: SparCL-DER++ 0.9 against LightCL 0.9, in percent: class-IL 50.5 ± 0.7 against 20.5 ± 0.7"
        in sentence
    )
    assert "Not used, because these runs match no row of the claim: 2 runs (resnet18 of width 16)." in page(
        claim, [measurements]
    )


def test_lean_is_compared_with_others_as_they_are_run_and_with_others_lean(claim: Claim, run: MakeRun) -> None:
    made = [run("lightcl-sparse", 50.0, execution="lean"), run("derpp", 1000.0), run("sparcl-derpp@released", 1500.0)]
    made += [run("derpp", 250.0, execution="lean"), run("sparcl-derpp", 300.0, execution="lean"), run("er", 900.0)]
    (sentence,) = [text for text in verdict(claim, measurements_of(claim, made)) if "all carried out lean" in text]
    assert sentence == (
        "Over LightCL 0.9, all carried out lean: on TinyImageNet (50.0 MiB) DER++ 5.00x, SparCL-DER++ 0.9 6.00x. With "
        "LightCL 0.9 alone carried out lean, which does not compare like with like: on TinyImageNet DER++ plain "
        "20.00x, SparCL-DER++ 0.9 released 30.00x."
    )
    assert " ER " not in sentence, "which was not measured lean"


def test_without_results_the_verdict_names_the_suites_that_would_measure_it(claim: Claim) -> None:
    assert "`clmem run table1-memory`" in verdict(claim, [])[-1]
    assert "Measured on" not in page(claim, [])
