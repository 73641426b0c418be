//! The planted-confounder experiment, as it is shipped: where the confounder's direction is known, the controls must come out
//! as they do for whoever reads the README.

use std::collections::BTreeMap;

use crate::space::Space;

const MANIFEST: &str = "manifests/planted-confounder.yaml";

/// How much more Dice one arm has than another, in points: the mean over the seeds, and its standard error. The seeds are paired.
fn gain(left: &BTreeMap<String, f64>, right: &BTreeMap<String, f64>) -> (f64, f64) {
    assert!(left.len() == 3 && left.keys().eq(right.keys()), "{left:?} {right:?}");
    let gains: Vec<f64> = left.iter().map(|(seed, dice)| 100.0 * (dice - right[seed])).collect();
    let (n, mean) = (gains.len() as f64, gains.iter().sum::<f64>() / gains.len() as f64);
    let variance = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Trains 27 small models, for about a minute.
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
    let mut scores: BTreeMap<(String, String), BTreeMap<String, f64>> = BTreeMap::new();
    for past in history.iter().filter(|past| past["executions"].as_array().is_some_and(|all| !all.is_empty())) {
        let name = past["instance"].as_str().unwrap();
        let axis =
            |axis: &str| name.split(['[', ',', ']']).find_map(|part| part.strip_prefix(axis)).unwrap().to_owned();
        let dice = past["executions"][0]["metrics"]["mean dice"].as_f64().unwrap();
        scores.entry((axis("world="), axis("arm="))).or_default().insert(axis("seed="), dice);
    }
    assert_eq!(scores.len(), 9);
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
        assert!(gain < 3.0, "{arm} gains {gain:.1} ± {error:.1}");
    }
    // Where nothing confounds, taking directions out costs no more than its standard error, or a quarter of a point on a processor that
    // rounds otherwise.
    for arm in ["project-right", "project-missing", "project-random"] {
        let (gain, error) = against_erm("none", arm);
        assert!(gain > -error.max(0.25), "{arm} loses {:.2} ± {error:.2}", -gain);
    }
}
