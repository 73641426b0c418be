//! Random histories against an oracle: after every edit the instances that ran are those that a naive model says must run, and
//! every artifact is the one of a clean build, byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::space::Space;

/// A pipeline as the oracle sees it.
#[derive(Clone, Debug)]
struct Model {
    axes: BTreeMap<String, Vec<u32>>,
    stages: Vec<Stage>,
    files: BTreeMap<String, String>,
    /// The order in which the stages are written.
    order: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Stage {
    per: Vec<String>,
    /// Earlier stages, by place.
    needs: Vec<usize>,
    file: Option<String>,
    rate: u32,
    /// How many characters of each line of what it reads get into its output.
    width: usize,
}

type Point = BTreeMap<String, u32>;

impl Model {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let axes: BTreeMap<String, Vec<u32>> =
            ["a", "b"].iter().map(|axis| ((*axis).to_owned(), (0..rng.random_range(1..4)).collect())).collect();
        let files: BTreeMap<String, String> =
            (0..3).map(|f| (format!("f{f}.txt"), format!("file-{f} {}\n", rng.random::<u16>()))).collect();
        let stages: Vec<Stage> = (0..rng.random_range(3..6))
            .map(|place| Stage {
                per: ["a", "b"].iter().filter(|_| rng.random_bool(0.5)).map(|axis| (*axis).to_owned()).collect(),
                needs: (0..place).filter(|_| rng.random_bool(0.5)).collect(),
                file: rng.random_bool(0.6).then(|| format!("f{}.txt", rng.random_range(0..3))),
                rate: rng.random_range(0..100),
                width: *[6, 400].choose(rng).unwrap(),
            })
            .collect();
        let order = (0..stages.len()).collect();
        Self { axes, stages, files, order }
    }

    fn points(&self, stage: &Stage) -> Vec<Point> {
        let mut points = vec![Point::new()];
        for axis in &stage.per {
            let longer = |point: Point| {
                self.axes[axis].iter().map(move |value| {
                    let mut longer = point.clone();
                    longer.insert(axis.clone(), *value);
                    longer
                })
            };
            points = points.into_iter().flat_map(longer).collect();
        }
        points
    }

    fn command(&self, place: usize) -> String {
        let stage = &self.stages[place];
        let axes: String = stage.per.iter().map(|axis| format!(" {axis}=${{{axis}}}")).collect();
        let mut reads: Vec<String> = stage.file.iter().cloned().collect();
        reads.extend((!stage.needs.is_empty()).then(|| "$(find -L inputs -type f | sort)".to_owned()));
        let body = if reads.is_empty() {
            String::new()
        } else {
            format!("; cat {} | cut -c1-{} >>out", reads.join(" "), stage.width)
        };
        format!("echo s{place} ${{rate}}{axes} >out{body}")
    }

    fn manifest(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|(axis, values)| format!("{axis}: {values:?}")).collect();
        let mut text = format!("axes: {{{}}}\nstages:\n", axes.join(", "));
        for place in &self.order {
            let stage = &self.stages[*place];
            let needs: Vec<String> = stage.needs.iter().map(|needed| format!("n{needed}: s{needed}")).collect();
            let files: Vec<&String> = stage.file.iter().collect();
            text.push_str(&format!(
                "  s{place}:\n    run: '{}'\n    per: {:?}\n    needs: {{{}}}\n    files: {files:?}\n    with: {{rate: {}}}\n    outputs: [out]\n",
                self.command(*place),
                stage.per,
                needs.join(", "),
                stage.rate
            ));
        }
        text
    }

    fn write(&self, space: &Space) {
        space.write("siteline.yaml", format!("siteline: 1\nname: study\n{}", self.manifest()));
        for (name, content) in &self.files {
            if std::fs::read_to_string(space.path(name)).ok().as_ref() != Some(content) {
                space.write(name, content);
            }
        }
    }
}

/// What the naive model remembers: everything that decides an instance's output, and the output.
#[derive(Default)]
struct Oracle {
    known: BTreeMap<String, String>,
}

impl Oracle {
    /// The instances that must run, which from then on are known, and the output of every instance.
    fn run(&mut self, model: &Model) -> (BTreeSet<String>, BTreeMap<String, String>) {
        let mut ran = BTreeSet::new();
        let mut outputs: BTreeMap<(usize, Point), String> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (place, stage) in model.stages.iter().enumerate() {
            for point in model.points(stage) {
                let mut inputs: Vec<(String, String)> = Vec::new();
                for needed in &stage.needs {
                    for there in model.points(&model.stages[*needed]) {
                        let fits = there.iter().all(|(axis, value)| point.get(axis).is_none_or(|mine| mine == value));
                        if fits {
                            inputs.push((format!("n{needed} {there:?}"), outputs[&(*needed, there)].clone()));
                        }
                    }
                }
                inputs.sort();
                let file = stage.file.as_ref().map(|name| (name, &model.files[name]));
                let decides = format!("{} {point:?} {} {file:?} {inputs:?}", model.command(place), stage.rate);
                let shown: Vec<String> = stage.per.iter().map(|axis| format!("{axis}={}", point[axis])).collect();
                let name =
                    if shown.is_empty() { format!("s{place}") } else { format!("s{place}[{}]", shown.join(",")) };
                if !self.known.contains_key(&decides) {
                    ran.insert(name.clone());
                }
                let axes: String = stage.per.iter().map(|axis| format!(" {axis}={}", point[axis])).collect();
                let mut output = format!("s{place} {}{axes}\n", stage.rate);
                let text: String = file
                    .iter()
                    .map(|(_, content)| content.as_str())
                    .chain(inputs.iter().map(|(_, c)| c.as_str()))
                    .collect();
                text.lines().for_each(|line| {
                    output.extend(line.chars().take(stage.width).chain(['\n']));
                });
                self.known.insert(decides, output.clone());
                names.insert(name, output.clone());
                outputs.insert((place, point), output);
            }
        }
        (ran, names)
    }

    /// Forgets every execution with this output.
    fn lose(&mut self, output: &str) {
        self.known.retain(|_, known| known != output);
    }
}

/// One random edit. Returns what it was.
fn edit(model: &mut Model, oracle: &mut Oracle, space: &Space, rng: &mut ChaCha8Rng) -> String {
    let place = rng.random_range(0..model.stages.len());
    match rng.random_range(0..9) {
        0 => {
            let name = model.files.keys().nth(rng.random_range(0..3)).unwrap().clone();
            model.files.insert(
                name.clone(),
                format!("{} {}\n", ["file-x", "file-y"].choose(rng).unwrap(), rng.random::<u16>()),
            );
            format!("content of {name}")
        }
        1 => {
            let name = model.files.keys().nth(rng.random_range(0..3)).unwrap().clone();
            space.write(&name, &model.files[&name]);
            format!("touch of {name}")
        }
        2 => {
            model.stages[place].rate = rng.random_range(0..100);
            format!("parameter of s{place}")
        }
        3 => {
            model.stages[place].width = rng.random_range(1..12);
            format!("command of s{place}")
        }
        4 => {
            let axis = ["a", "b"].choose(rng).unwrap().to_string();
            let values = model.axes.get_mut(&axis).unwrap();
            values.push(values.iter().max().unwrap() + 1);
            format!("value added to {axis}")
        }
        5 => {
            let axis = ["a", "b"].choose(rng).unwrap().to_string();
            let values = model.axes.get_mut(&axis).unwrap();
            if values.len() > 1 {
                values.remove(rng.random_range(0..values.len()));
            }
            format!("value taken from {axis}")
        }
        6 => {
            model.order.shuffle(rng);
            "manifest reordered".to_owned()
        }
        7 => {
            // One object is gone: whatever made it runs again, if it is still asked for.
            let objects: Vec<_> = std::fs::read_dir(space.path(".siteline/objects"))
                .unwrap()
                .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
                .map(|file| file.unwrap().path())
                .collect();
            let lost = objects.choose(rng).unwrap();
            oracle.lose(&std::fs::read_to_string(lost).unwrap());
            std::fs::remove_file(lost).unwrap();
            "an object lost".to_owned()
        }
        _ => {
            std::fs::remove_file(space.path(".siteline/ledger.db")).unwrap();
            for suffix in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(space.path(&format!(".siteline/ledger.db{suffix}")));
            }
            "the ledger lost".to_owned()
        }
    }
}

#[test]
fn random_histories_run_what_an_oracle_says_and_leave_what_a_clean_build_leaves() {
    let (mut all, mut nothing) = (0, 0);
    for seed in 0..10 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut model = Model::random(&mut rng);
        let mut oracle = Oracle::default();
        let space = Space::of_commands("");
        let mut history = vec!["the first run".to_owned()];
        for _ in 0..9 {
            model.write(&space);
            let (expected, outputs) = oracle.run(&model);
            let said = space.run(&["run", "--plain"]);
            assert_eq!(said.code, 0, "seed {seed}, {history:?}: {}\n{}", said.stderr, space.read("siteline.yaml"));
            assert_eq!(said.executed(), expected, "seed {seed}, {history:?}\n{}", space.read("siteline.yaml"));
            all += 1;
            nothing += usize::from(expected.is_empty());
            for (instance, output) in &outputs {
                let found = String::from_utf8(space.output(instance, "out")).unwrap();
                assert_eq!(&found, output, "seed {seed}, {history:?}: {instance}");
            }
            history.push(edit(&mut model, &mut oracle, &space, &mut rng));
        }
        let clean = Space::of_commands("");
        model.write(&space);
        model.write(&clean);
        space.executed(&[]);
        clean.executed(&[]);
        assert_eq!(space.artifacts(), clean.artifacts(), "seed {seed}, {history:?}");
    }
    assert!(
        nothing > 5 && nothing < all / 2,
        "{nothing} of {all} runs had nothing to do: the edits are not what they should be"
    );
}
