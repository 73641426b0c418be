//! The planted-confounder experiment, as it is shipped: where the confounder's direction is known, the controls must come out
//! as they do for whoever reads the README.

use std::collections::BTreeMap;

use crate::space::Space;

const MANIFEST: &str = "manifests/planted-confounder.yaml";

/// The Dice of an arm in a world over the seeds, in percent.
struct Scores(Vec<f64>);

impl Scores {
    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// The standard error of the mean, squared.
    fn error_squared(&self) -> f64 {
        let (n, mean) = (self.0.len() as f64, self.mean());
        self.0.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0) / n
    }
}

/// How much more `left` has than `right`, and the standard error of that.
fn gain(left: &Scores, right: &Scores) -> (f64, f64) {
    (left.mean() - right.mean(), (left.error_squared() + right.error_squared()).sqrt())
}

#[test]
fn with_a_confounder_whose_direction_is_known_the_controls_come_out_as_they_must() {
    let space = Space::of_commands("stages: {}");
    space.bring(&["manifests", "weights"]);
    let said = space.run(&["phantoms", "manifests/planted-sites.yaml", "--out", "demo/planted"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let wanted = ["world=features,arm=erm", "world=features,arm=oracle", "world=features,arm=project-*"];
    let wanted = wanted.iter().chain(&["world=none,arm=erm", "world=none,arm=project-*"]);
    let mut words = vec!["run".to_owned(), "--plain".into(), "-m".into(), MANIFEST.into()];
    words.extend(wanted.flat_map(|point| ["--only".to_owned(), format!("evaluate[{point}]")]));
    let said = space.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(said.code, 0, "{}", said.stderr);

    let history = space.run(&["history", "evaluate", "--json", "-m", MANIFEST]).stdout;
    let history: Vec<serde_json::Value> = serde_json::from_str(&history).unwrap();
    let mut scores: BTreeMap<(String, String), Scores> = BTreeMap::new();
    for past in history.iter().filter(|past| past["executions"].as_array().is_some_and(|all| !all.is_empty())) {
        let name = past["instance"].as_str().unwrap();
        let axis =
            |axis: &str| name.split(['[', ',', ']']).find_map(|part| part.strip_prefix(axis)).unwrap().to_owned();
        let dice = past["executions"][0]["metrics"]["mean dice"].as_f64().unwrap();
        let of = scores.entry((axis("world="), axis("arm="))).or_insert_with(|| Scores(Vec::new()));
        of.0.push(100.0 * dice);
    }
    assert_eq!(scores.len(), 9);
    assert!(scores.values().all(|of| of.0.len() == 3));
    let of = |world: &str, arm: &str| &scores[&(world.to_owned(), arm.to_owned())];
    let against_erm = |world: &str, arm: &str| gain(of(world, arm), of(world, "erm"));
    // The confounder misleads ERM, and whoever knows it or takes its direction out is not misled.
    for arm in ["oracle", "project-right"] {
        let (gain, error) = against_erm("features", arm);
        assert!(gain > 5.0 && gain > 3.0 * error, "{arm} gains {gain:.1} with a standard error of {error:.1}");
    }
    // A dictionary that misses it, and random directions, do not help.
    for arm in ["project-missing", "project-random"] {
        let (gain, error) = against_erm("features", arm);
        let (right, _) = against_erm("features", "project-right");
        assert!(gain < 2.0 * error + 1.0 && gain < right / 2.0, "{arm} gains {gain:.1} ± {error:.1}");
    }
    // Where nothing confounds, taking directions out costs nothing.
    for arm in ["project-right", "project-missing", "project-random"] {
        let (gain, error) = against_erm("none", arm);
        assert!(gain > -2.0 * error - 0.5, "{arm} loses {:.2} ± {error:.2}", -gain);
    }
}
