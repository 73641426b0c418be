//! Every registered method trains, scores and stands in the table, on the same cached features.

use crate::space::Space;

const METHODS: [&str; 6] = ["coral", "erm", "groupdro", "irm", "mcdrl", "vrex"];

#[test]
fn all_methods_share_a_table() {
    let space = Space::fresh();
    let schema: serde_json::Value = serde_json::from_str(&space.run(&["schema", "--kind", "train"]).stdout).unwrap();
    let known = schema["parameters"]["$defs"]["MethodName"]["oneOf"].as_array().unwrap();
    let mut known: Vec<&str> = known.iter().map(|method| method["const"].as_str().unwrap()).collect();
    known.sort_unstable();
    assert_eq!(known, METHODS, "a method is not tried here");

    space.edit("siteline.yaml", "method: [erm, mcdrl]", &format!("method: [{}]", METHODS.join(", ")));
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let table = space.read("results/study/table.md");
    for method in METHODS {
        assert!(table.contains(&format!("| tiny     | {method} ")), "{method} is not in\n{table}");
    }
    // Each writes what it adds to the loss, and nothing else's parameters are part of its key.
    let logs =
        |method: &str| space.run(&["log", &format!("train[method={method},backbone=tiny,held_out=A,seed=0]")]).stdout;
    for (method, penalty) in [("coral", "alignment"), ("irm", "invariance"), ("vrex", "variance"), ("mcdrl", "causal")]
    {
        assert!(logs(method).contains(&format!("\"{penalty}\":")), "{}", logs(method));
    }
    let plan = space.run(&["plan", "--set", "stages.train.with.vrex={beta: 3}"]);
    assert!(plan.stdout.contains("train                          18       15        3        0"), "{}", plan.stdout);
}
