//! Model selection among candidates, by each protocol, from the outside.

use std::collections::BTreeSet;

use crate::space::Space;

/// The project with two learning rates to choose between.
fn choosing(selection: &str, rows: &str) -> Space {
    let space = Space::fresh();
    space.edit(
        "siteline.yaml",
        "  method: [erm, mcdrl]\n",
        "  method: [erm]\n  rate: [{name: slow, lr: 0.0001}, {name: fast, lr: 0.01}]\n",
    );
    space.edit("siteline.yaml", "    per: [method, backbone, held_out, seed]\n    needs:\n      features: {stage: features, where: site != held_out}\n      dictionary: {stage: confounders, when: method == mcdrl}\n", &format!("    per: [method, backbone, held_out, rate, seed]\n    selection: {selection}\n    needs:\n      features: {{stage: features, where: site != held_out}}\n"));
    space.edit(
        "siteline.yaml",
        "    per: [method, backbone, held_out, seed]\n    needs:\n      model: train\n",
        &format!("    per: {rows}\n    needs:\n      model: train.select\n"),
    );
    space.edit(
        "siteline.yaml",
        "  confounders: {uses: confounder-dictionary, per: [backbone], with: {prompts: prompts.yaml}}\n",
        "",
    );
    space
}

const ALL: &str = "{protocol: [training-domain-validation, leave-one-domain-out, oracle], among: [rate]}";
const EACH: &str = "[method, backbone, held_out, seed, selection]";

#[test]
fn every_protocol_chooses_by_the_scores_that_it_may_see() {
    let space = choosing(ALL, EACH);
    let plan = space.run(&["plan"]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    // Three sites: 3 trainings without one and 3 without two, for each of two candidates.
    assert!(plan.stdout.contains("3 + 3 trainings for each candidate and repetition, 12 in all"), "{}", plan.stdout);
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);

    for held_out in ["A", "B", "C"] {
        let choice = |protocol: &str| -> serde_json::Value {
            let name =
                format!("train.select[method=erm,backbone=tiny,held_out={held_out},seed=0,selection={protocol}]");
            serde_json::from_slice(&space.output(&name, "selection.json")).unwrap()
        };
        for (protocol, sites) in [
            ("training-domain-validation", BTreeSet::from(["training sites"])),
            ("leave-one-domain-out", ["A", "B", "C"].into_iter().filter(|site| *site != held_out).collect()),
            ("oracle", BTreeSet::from([held_out])),
        ] {
            let choice = choice(protocol);
            let candidates = choice["candidates"].as_array().unwrap();
            assert_eq!(candidates.len(), 2, "{choice}");
            let score = |place: usize| candidates[place]["score"].as_f64().unwrap();
            let chosen = choice["chosen"].as_u64().unwrap() as usize;
            assert!(score(chosen) >= score(1 - chosen), "{choice}");
            for candidate in candidates {
                let scored: BTreeSet<&str> =
                    candidate["scores"].as_object().unwrap().keys().map(String::as_str).collect();
                assert_eq!(scored, sites, "{protocol}, {held_out} held out");
            }
        }
    }

    let table = space.read("results/study/table.md");
    let marked: Vec<&str> = table.lines().filter(|line| line.contains('‡') && line.starts_with('|')).collect();
    assert!(marked.len() == 3 && marked.iter().all(|line| line.contains("oracle")), "{table}");
    for words in
        ["leave-one-domain-out cross-validation", "training-domain validation", "oracle: scores on the held-out"]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    let audit = space.run(&["audit"]);
    assert_eq!(audit.code, 0, "{}", audit.stdout);
    assert!(audit.stdout.contains(" 0 leaking"), "{}", audit.stdout);
}

/// What leave-one-domain-out chooses for a held-out site cannot depend on that site: its images change, the choice stays.
#[test]
fn the_held_out_site_has_no_part_in_leave_one_domain_out() {
    let space = choosing("{protocol: leave-one-domain-out, among: [rate]}", "[method, backbone, held_out, seed]");
    assert_eq!(space.run(&["run", "--plain"]).code, 0);
    std::fs::copy(space.path("data/A/images/phantom_0000.png"), space.path("data/A/images/phantom_0001.png")).unwrap();
    let plan = space.run(&["plan", "-v"]);
    let states = |name: &str| -> Vec<&str> {
        plan.stdout
            .lines()
            .filter(|line| line.split_whitespace().nth(1).is_some_and(|found| found.starts_with(name)))
            .map(|line| line.split_whitespace().next().unwrap())
            .collect()
    };
    assert_eq!(states("train.select[method=erm,backbone=tiny,held_out=A"), ["cached"], "{}", plan.stdout);
    assert_eq!(states("train.select[method=erm,backbone=tiny,held_out=B"), ["wait"], "{}", plan.stdout);
    assert_eq!(space.run(&["run", "--plain"]).code, 0);
    let table = space.read("results/study/table.md");
    assert!(table.contains("rate by leave-one-domain-out") && !table.contains('‡'), "{table}");
}

fn refused(space: &Space) -> String {
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2, "{}", said.stdout);
    said.snapshot(space)
}

/// Every training site has a say, whichever sites are tested on.
#[test]
fn sites_that_are_not_tested_on_validate_as_well() {
    let space = choosing("{protocol: leave-one-domain-out, among: [rate]}", "[method, backbone, held_out, seed]");
    space.edit("siteline.yaml", "  held_out: sites\n", "  held_out: [A]\n");
    let plan = space.run(&["plan", "-v"]);
    assert!(plan.stdout.contains("1 + 2 trainings for each candidate"), "{}", plan.stdout);
    for validated in ["left_out=A+B,rate=slow,seed=0,site=B", "left_out=A+C,rate=slow,seed=0,site=C"] {
        assert!(plan.stdout.contains(validated), "{}", plan.stdout);
    }
}

/// An oracle's mark stays on whatever is chosen among its choices, and stages that would lose it are refused.
#[test]
fn what_an_oracle_chose_stays_marked() {
    let space = choosing("{protocol: oracle, among: [rate]}", "[method, backbone, held_out]");
    let again = "  again: {uses: select, per: [method, backbone, held_out], with: {selection: training-domain-validation, among: [seed]}, needs: {candidates: train.select}}\n  evaluate:\n";
    space.edit("siteline.yaml", "  evaluate:\n", again);
    space.edit("siteline.yaml", "model: train.select", "model: again");
    space.edit("siteline.yaml", "{uses: table, needs", "{uses: table, with: {over: []}, needs");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(space.read("results/study/table.md").contains('‡'));
    assert!(space.run(&["audit"]).stdout.contains("an oracle made it"));
    let status = space.run(&["status"]).stdout;
    assert!(status.contains("‡ chosen by an oracle"), "{status}");

    let text = space.read("siteline.yaml")
        + "  copy: {run: cp inputs/model/model.safetensors out, per: [method, backbone, held_out], needs: {model: again}, outputs: [out]}\n";
    space.write("siteline.yaml", text);
    insta::assert_snapshot!("the_mark_would_be_lost", refused(&space));
}

#[test]
fn selections_that_cannot_be_carried_out_say_why() {
    let one = "[method, backbone, held_out, seed]";
    insta::assert_snapshot!("nothing_to_choose", refused(&choosing("{protocol: oracle, among: []}", one)));
    insta::assert_snapshot!("unknown_axis", refused(&choosing("{protocol: oracle, among: [rat]}", one)));
    insta::assert_snapshot!("unknown_protocol", refused(&choosing("{protocol: orakel, among: [rate]}", one)));
    let several = "{protocol: [oracle, training-domain-validation], among: [rate]}";
    insta::assert_snapshot!("several_for_one", refused(&choosing(several, one)));

    let repeated = "[method, backbone, held_out, seed, rate]";
    insta::assert_snapshot!(
        "repeated_over_candidates",
        refused(&choosing("{protocol: oracle, among: [rate]}", repeated))
    );
    let space = choosing("{protocol: leave-one-domain-out, among: [rate]}", one);
    space.edit("siteline.yaml", "slow, lr: 0.0001", "slow, lrr: 0.0001");
    insta::assert_snapshot!("slip_in_a_group", refused(&space));
    let space = choosing("{protocol: leave-one-domain-out, among: [rate]}", one);
    let text = space.read("siteline.yaml");
    let two: Vec<&str> = text.lines().filter(|line| !line.starts_with("  C: ")).collect();
    space.write("siteline.yaml", two.join("\n"));
    insta::assert_snapshot!("two_sites", refused(&space));

    // Refused by its number, before memory is taken for the pairs.
    let space = choosing("{protocol: leave-one-domain-out, among: [rate]}", one);
    let many: Vec<String> = (0..30_000).map(|n| format!("n{n}")).collect();
    space.edit(
        "siteline.yaml",
        "  held_out: sites\n",
        &format!("  held_out: [{}]\n  centre: [{}]\n", many.join(", "), many.join(", ")),
    );
    space.edit("siteline.yaml", "where: site != held_out}\n", "where: centre != held_out}\n");
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("train once for each of 449985000 pairs of sites"), "{:.600}", said.stderr);

    let space = choosing(ALL, EACH);
    space.edit("siteline.yaml", "where: site != held_out}\n", "where: site != held_out and not held_out == A}\n");
    insta::assert_snapshot!("unclear_condition", refused(&space));
    let space = choosing(ALL, EACH);
    space.edit("siteline.yaml", "  seed: [0]\n", "  seed: [0]\n  selection: [oracle]\n");
    insta::assert_snapshot!("axis_is_taken", refused(&space));
}
