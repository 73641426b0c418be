//! Random histories against an oracle: after every edit the instances that ran are those that a naive model says must run, and
//! every artifact is the one of a clean build, byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::space::Space;

/// A pipeline as the oracle sees it.
#[derive(Clone, Debug)]
struct Model {
    axes: BTreeMap<String, Vec<u32>>,
    stages: Vec<Stage>,
    files: BTreeMap<String, String>,
    /// Programs that commands call, by file.
    code: BTreeMap<String, String>,
    /// The point that the sweep leaves out.
    excluded: Option<(u32, u32)>,
    /// The order in which the stages are written.
    order: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Stage {
    per: Vec<String>,
    /// Earlier stages, by place.
    needs: Vec<Need>,
    file: Option<String>,
    /// A program that it calls.
    code: Option<String>,
    /// `when a == <value>`: the stage exists at these points alone.
    only: Option<u32>,
    rate: u32,
    /// How many characters of each line of what it reads get into its output.
    width: usize,
}

/// An earlier stage that is read, and of which instances.
#[derive(Clone, Debug)]
struct Need {
    stage: usize,
    condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Condition {
    /// What has the same values of the axes that both have.
    None,
    /// `where a == <value>`: of all instances there, those with this value.
    Where(u32),
    /// `where a != <value>`
    WhereNot(u32),
    /// `when b == <value>`: only where the reader has this value.
    When(u32),
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
                needs: (0..place)
                    .filter(|_| rng.random_bool(0.5))
                    .map(|stage| Need { stage, condition: Condition::None })
                    .collect(),
                file: rng.random_bool(0.6).then(|| format!("f{}.txt", rng.random_range(0..3))),
                code: rng.random_bool(0.5).then(|| format!("c{}.sh", rng.random_range(0..2))),
                only: None,
                rate: rng.random_range(0..100),
                width: *[6, 400].choose(rng).unwrap(),
            })
            .collect();
        let order = (0..stages.len()).collect();
        let code = (0..2).map(|c| (format!("c{c}.sh"), program(rng))).collect();
        Self { axes, stages, files, code, excluded: None, order }
    }

    fn has(&self, stage: usize, axis: &str) -> bool {
        self.stages[stage].per.iter().any(|own| own == axis)
    }

    /// The instances that one instance reads by a need.
    fn read(&self, need: &Need, point: &Point) -> Vec<Point> {
        if let Condition::When(value) = need.condition
            && point["b"] != value
        {
            return Vec::new();
        }
        let fits = |there: &Point| {
            there.iter().all(|(axis, value)| point.get(axis).is_none_or(|mine| mine == value))
                && match need.condition {
                    Condition::Where(value) => there["a"] == value,
                    Condition::WhereNot(value) => there["a"] != value,
                    Condition::None | Condition::When(_) => true,
                }
        };
        self.points(&self.stages[need.stage]).into_iter().filter(fits).collect()
    }

    /// Whether every stage has instances, and every need that holds finds some: what else would be refused.
    fn is_whole(&self) -> bool {
        self.stages.iter().all(|stage| {
            let points = self.points(stage);
            let finds = |need: &Need, point: &Point| match need.condition {
                Condition::When(value) if point["b"] != value => true,
                _ => !self.read(need, point).is_empty(),
            };
            !points.is_empty() && points.iter().all(|point| stage.needs.iter().all(|need| finds(need, point)))
        })
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
        points.retain(|point| {
            let left_out = self.excluded.is_some_and(|(a, b)| point.get("a") == Some(&a) && point.get("b") == Some(&b));
            !left_out && stage.only.is_none_or(|only| point["a"] == only)
        });
        points
    }

    fn command(&self, place: usize) -> String {
        let stage = &self.stages[place];
        let axes: String = stage.per.iter().map(|axis| format!(" {axis}=${{{axis}}}")).collect();
        let mut reads: Vec<String> = stage.file.iter().cloned().collect();
        // Where every need has a `when` that does not hold, nothing is there.
        reads.extend(
            (!stage.needs.is_empty()).then(|| "/dev/null $(find -L inputs -type f 2>/dev/null | sort)".to_owned()),
        );
        let calls: String = stage.code.iter().map(|name| format!("; sh {name} >>out")).collect();
        let body = if reads.is_empty() {
            String::new()
        } else {
            format!("; cat {} | cut -c1-{} >>out", reads.join(" "), stage.width)
        };
        format!("echo s{place} ${{rate}}{axes} >out{calls}{body}")
    }

    fn manifest(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|(axis, values)| format!("{axis}: {values:?}")).collect();
        let mut text = format!("axes: {{{}}}\n", axes.join(", "));
        if let Some((a, b)) = self.excluded {
            text.push_str(&format!("exclude: [a == {a} and b == {b}]\n"));
        }
        text.push_str("stages:\n");
        for place in &self.order {
            let stage = &self.stages[*place];
            let needs: Vec<String> = stage.needs.iter().map(Need::written).collect();
            let (files, code): (Vec<&String>, Vec<&String>) =
                (stage.file.iter().collect(), stage.code.iter().collect());
            let when = stage.only.map(|value| format!("    when: a == {value}\n")).unwrap_or_default();
            text.push_str(&format!(
                "  s{place}:\n    run: '{}'\n    per: {:?}\n    needs: {{{}}}\n    files: {files:?}\n    code: {code:?}\n{when}    with: {{rate: {}}}\n    outputs: [out]\n",
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
        for (name, content) in self.files.iter().chain(&self.code) {
            if std::fs::read_to_string(space.path(name)).ok().as_ref() != Some(content) {
                space.write(name, content);
            }
        }
    }
}

impl Need {
    /// As the manifest has it.
    fn written(&self) -> String {
        let stage = self.stage;
        match self.condition {
            Condition::None => format!("n{stage}: s{stage}"),
            Condition::Where(value) => format!("n{stage}: {{stage: s{stage}, where: a == {value}}}"),
            Condition::WhereNot(value) => format!("n{stage}: {{stage: s{stage}, where: a != {value}}}"),
            Condition::When(value) => format!("n{stage}: {{stage: s{stage}, when: b == {value}}}"),
        }
    }
}

/// A program that prints a word; what is behind the word changes the program and not what it prints.
fn program(rng: &mut ChaCha8Rng) -> String {
    format!("echo {} # {}\n", ["one", "two"].choose(rng).unwrap(), rng.random_range(0..3))
}

fn printed(program: &str) -> String {
    format!("{}\n", program.split(' ').nth(1).unwrap())
}

/// An execution as the naive model remembers it.
struct Execution {
    output: String,
    /// The journals that tell of it.
    journals: BTreeSet<PathBuf>,
}

/// What the naive model remembers: by everything that decides an instance's output the output, and which outputs are there.
#[derive(Default)]
struct Oracle {
    executions: BTreeMap<String, Execution>,
    outputs: BTreeSet<String>,
    /// What ran last.
    fresh: Vec<String>,
}

impl Oracle {
    fn knows(&self, decides: &str) -> bool {
        let execution = self.executions.get(decides);
        execution.is_some_and(|e| !e.journals.is_empty() && self.outputs.contains(&e.output))
    }

    /// Takes in which journal tells of what ran last.
    fn told_in(&mut self, journals: &BTreeSet<PathBuf>) {
        for decides in self.fresh.drain(..) {
            if let Some(execution) = self.executions.get_mut(&decides) {
                execution.journals.extend(journals.iter().cloned());
            }
        }
    }

    /// The instances that must run, which from then on are known, and the output of every instance.
    fn run(&mut self, model: &Model) -> (BTreeSet<String>, BTreeMap<String, String>) {
        let mut ran = BTreeSet::new();
        let mut outputs: BTreeMap<(usize, Point), String> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (place, stage) in model.stages.iter().enumerate() {
            for point in model.points(stage) {
                let mut inputs: Vec<(String, String)> = Vec::new();
                for need in &stage.needs {
                    for there in model.read(need, &point) {
                        inputs.push((format!("n{} {there:?}", need.stage), outputs[&(need.stage, there)].clone()));
                    }
                }
                inputs.sort();
                let file = stage.file.as_ref().map(|name| (name, &model.files[name]));
                let code = stage.code.as_ref().map(|name| (name, &model.code[name]));
                let decides = format!("{} {point:?} {} {file:?} {code:?} {inputs:?}", model.command(place), stage.rate);
                let shown: Vec<String> = stage.per.iter().map(|axis| format!("{axis}={}", point[axis])).collect();
                let name =
                    if shown.is_empty() { format!("s{place}") } else { format!("s{place}[{}]", shown.join(",")) };
                let runs = !self.knows(&decides);
                let axes: String = stage.per.iter().map(|axis| format!(" {axis}={}", point[axis])).collect();
                let mut output = format!("s{place} {}{axes}\n", stage.rate);
                output.extend(code.map(|(_, program)| printed(program)));
                let text: String = file
                    .iter()
                    .map(|(_, content)| content.as_str())
                    .chain(inputs.iter().map(|(_, c)| c.as_str()))
                    .collect();
                text.lines().for_each(|line| {
                    output.extend(line.chars().take(stage.width).chain(['\n']));
                });
                if runs {
                    ran.insert(name.clone());
                    self.outputs.insert(output.clone());
                    let unknown = || Execution { output: output.clone(), journals: BTreeSet::new() };
                    self.executions.entry(decides.clone()).or_insert_with(unknown);
                    self.fresh.push(decides);
                }
                names.insert(name, output.clone());
                outputs.insert((place, point), output);
            }
        }
        (ran, names)
    }
}

/// One random edit. Returns what it was. One that leaves what would be refused is taken back, and another is made.
fn edit(model: &mut Model, oracle: &mut Oracle, space: &Space, rng: &mut ChaCha8Rng) -> String {
    loop {
        let before = model.clone();
        let what = match rng.random_range(0..15) {
            0..9 => edit_project(model, space, rng),
            9..13 => edit_sweep(model, rng),
            _ => damage(oracle, space, rng),
        };
        if model.is_whole() {
            return what;
        }
        *model = before;
    }
}

fn edit_project(model: &mut Model, space: &Space, rng: &mut ChaCha8Rng) -> String {
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
        _ => {
            let name = model.code.keys().nth(rng.random_range(0..2)).unwrap().clone();
            model.code.insert(name.clone(), program(rng));
            format!("program {name}")
        }
    }
}

/// An edit of what exists and what reads what.
fn edit_sweep(model: &mut Model, rng: &mut ChaCha8Rng) -> String {
    let place = rng.random_range(0..model.stages.len());
    let value = |axis: &str, rng: &mut ChaCha8Rng| *model.axes[axis].choose(rng).unwrap();
    let (a, b) = (value("a", rng), value("b", rng));
    match rng.random_range(0..4) {
        0 => {
            model.excluded = model.excluded.is_none().then_some((a, b));
            format!("left out: {:?}", model.excluded)
        }
        1 if model.has(place, "a") => {
            model.stages[place].only = model.stages[place].only.is_none().then_some(a);
            format!("s{place} exists at {:?}", model.stages[place].only)
        }
        _ => {
            let kind = *[Condition::None, Condition::Where(a), Condition::WhereNot(a), Condition::When(b)]
                .choose(rng)
                .unwrap();
            let possible = |place: usize, need: &Need| match kind {
                Condition::None => need.condition != Condition::None,
                Condition::Where(_) | Condition::WhereNot(_) => model.has(need.stage, "a") && !model.has(place, "a"),
                Condition::When(_) => model.has(place, "b"),
            };
            let needs = model.stages.iter().enumerate().flat_map(|(place, stage)| {
                stage.needs.iter().enumerate().map(move |(which, need)| (place, which, need))
            });
            let found = needs.filter(|(place, _, need)| possible(*place, need)).choose(rng);
            let Some((place, which)) = found.map(|(place, which, _)| (place, which)) else {
                return "nothing".to_owned();
            };
            model.stages[place].needs[which].condition = kind;
            format!("s{place} reads s{}: {kind:?}", model.stages[place].needs[which].stage)
        }
    }
}

/// The journals of a store.
fn journals(space: &Space) -> BTreeSet<PathBuf> {
    let files = std::fs::read_dir(space.path(".siteline/records")).into_iter().flatten();
    files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "records")).collect()
}

/// Something of the store is lost.
fn damage(oracle: &mut Oracle, space: &Space, rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..4) {
        0 | 1 => {
            // One object is gone: whatever made it runs again, if it is still asked for.
            let mut objects: Vec<_> = std::fs::read_dir(space.path(".siteline/objects"))
                .unwrap()
                .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
                .map(|file| file.unwrap().path())
                .collect();
            objects.sort();
            let lost = objects.choose(rng).unwrap();
            oracle.outputs.remove(&std::fs::read_to_string(lost).unwrap());
            std::fs::remove_file(lost).unwrap();
            "an object lost".to_owned()
        }
        2 => {
            // What a run did is not known any more, but for what another one did as well.
            let Some(lost) = journals(space).into_iter().choose(rng) else { return "nothing".to_owned() };
            oracle.executions.values_mut().for_each(|execution| {
                execution.journals.remove(&lost);
            });
            std::fs::remove_file(&lost).unwrap();
            "a journal lost".to_owned()
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
    let mut conditions = BTreeSet::new();
    let mut edits = BTreeSet::new();
    for seed in 0..24 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut model = Model::random(&mut rng);
        let mut oracle = Oracle::default();
        let space = Space::of_commands("");
        let mut history = vec!["the first run".to_owned()];
        for step in 0..9 {
            model.write(&space);
            let (expected, outputs) = oracle.run(&model);
            let before = journals(&space);
            let said = space.run(&["run", "--plain"]);
            oracle.told_in(&journals(&space).difference(&before).cloned().collect());
            assert_eq!(said.code, 0, "seed {seed}, {history:?}: {}\n{}", said.stderr, space.read("siteline.yaml"));
            assert_eq!(said.executed(), expected, "seed {seed}, {history:?}\n{}", space.read("siteline.yaml"));
            all += 1;
            nothing += usize::from(expected.is_empty());
            for (instance, output) in &outputs {
                let found = String::from_utf8(space.output(instance, "out")).unwrap();
                assert_eq!(&found, output, "seed {seed}, {history:?}: {instance}");
            }
            // A clean build takes as long as all of the history: now and then, and at the end.
            if step % 3 == 2 {
                let clean = Space::of_commands("");
                model.write(&clean);
                clean.executed(&[]);
                assert_eq!(space.artifacts(), clean.artifacts(), "seed {seed}, {history:?}");
            }
            let of_needs = model.stages.iter().flat_map(|stage| &stage.needs).map(|need| match need.condition {
                Condition::None => "all",
                Condition::Where(_) => "where ==",
                Condition::WhereNot(_) => "where !=",
                Condition::When(_) => "when",
            });
            conditions.extend(of_needs.chain(model.excluded.map(|_| "exclude")));
            conditions.extend(model.stages.iter().filter_map(|stage| stage.only.map(|_| "stage when")));
            history.push(edit(&mut model, &mut oracle, &space, &mut rng));
            edits.insert(history.last().unwrap().clone());
        }
        let clean = Space::of_commands("");
        model.write(&space);
        model.write(&clean);
        space.executed(&[]);
        clean.executed(&[]);
        assert_eq!(space.artifacts(), clean.artifacts(), "seed {seed}, {history:?}");
    }
    assert_eq!(conditions.len(), 6, "only {conditions:?} were tried");
    for lost in ["an object lost", "a journal lost", "the ledger lost"] {
        assert!(edits.contains(lost), "{lost}: never tried");
    }
    assert!(
        nothing > 5 && nothing < all * 3 / 5,
        "{nothing} of {all} runs had nothing to do: the edits are not what they should be"
    );
}
