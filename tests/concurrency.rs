//! Kills and company: whatever happens to a run, the next one just works.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::reliability::wait;
use crate::space::{Said, Space, skipped};

/// Processes whose command line names the folder or that run in it.
fn workers_in(space: &Space) -> usize {
    let root = std::fs::canonicalize(space.root()).unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|p| std::fs::read_link(p.path().join("cwd")).is_ok_and(|cwd| cwd == root)).count()
}

#[test]
fn a_run_that_is_killed_at_any_moment_is_followed_by_one_that_just_works() {
    let clean = Space::finished().records();
    let space = Space::fresh();
    let mut interrupted = 0;
    let mut finished_before = 0;
    for round in 0..8u64 {
        let mut child = space.command(&["run", "--plain"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Spread over the run, and different on every machine: any moment will do.
        std::thread::sleep(Duration::from_millis(150 + 260 * round));
        let over = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(!over);
        let whole = space.records().len();
        assert!(whole >= finished_before, "a finished result was lost");
        finished_before = whole;
    }
    assert!(interrupted > 0, "no run was interrupted: the fault never happened");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(said.executed().len(), clean.len() - finished_before, "a finished instance was repeated");
    assert_eq!(space.records(), clean);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(workers_in(&space), 0, "a worker outlived its driver");
}

#[test]
fn two_runs_at_once_execute_each_instance_once() {
    let space = Space::fresh();
    let spawn = || space.command(&["run", "--plain"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (one, two) = (spawn(), spawn());
    let (one, two) = (Said::from(one.wait_with_output().unwrap()), Said::from(two.wait_with_output().unwrap()));
    assert_eq!((one.code, two.code), (0, 0), "{}\n{}", one.stderr, two.stderr);
    let (a, b) = (one.executed(), two.executed());
    assert_eq!(a.intersection(&b).collect::<Vec<_>>(), Vec::<&String>::new(), "executed twice");
    assert_eq!(a.len() + b.len(), Space::finished().records().len());
}

#[test]
fn a_stopped_run_ends_in_order_and_goes_on_later() {
    let space = Space::fresh();
    // Long enough to be met in the middle on any machine.
    let arguments = ["run", "--plain", "--set", "stages.train.with.epochs=60"];
    let child = space.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let told = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(told.success());
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, 130, "{}", said.stderr);
    assert!(said.stdout.contains("Stopped in"), "{}", said.stdout);
    let before = space.records().len();
    let again = space.run(&arguments);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(again.executed().len(), space.records().len() - before);
}

#[test]
fn the_ledger_is_made_anew_when_it_is_gone_or_damaged() {
    let space = Space::finished();
    std::fs::remove_file(space.path(".siteline/ledger.db")).unwrap();
    assert!(space.executed(&[]).is_empty());
    std::fs::write(
        space.path(".siteline/ledger.db"),
        b"this is no database, though it is long enough to be looked at as one",
    )
    .unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(space.path(&format!(".siteline/ledger.db{suffix}")));
    }
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.executed().is_empty());
    assert!(said.stderr.contains("ledger was damaged"), "{}", said.stderr);
    let why = space.run(&["why", "table", "--set", "stages.table.with.decimals=4"]);
    assert!(why.stdout.contains("parameter decimals: 1 -> 4"), "{}", why.stdout);
}

/// A lease of another machine holds while that machine renews it, whatever this machine takes the time to be.
#[test]
fn a_lease_of_another_machine_does_not_depend_on_the_clock() {
    if std::process::Command::new("faketime").arg("--version").output().is_err() {
        return skipped("faketime is not there (on Debian: apt-get install faketime)");
    }
    let space = Space::of_commands("stages: {one: {run: \"echo x >out\", outputs: [out]}}\n");
    space.executed(&[]);
    let key = space.records().keys().next().unwrap().clone();
    let owner = r#"{"host": "elsewhere", "boot": "another machine", "pid": 1, "started": 1}"#;
    for shift in ["+1d", "-1d"] {
        let fresh = Space::of_commands(
            "stages: {one: {run: \"echo x >out\", outputs: [out]}, two: {run: \"echo y >out\", outputs: [out]}}\n",
        );
        assert_eq!(fresh.run(&["--shared-store", "run", "--only", "two"]).code, 0);
        let lease = fresh.path(&format!(".siteline/leases/{key}"));
        std::fs::create_dir_all(lease.parent().unwrap()).unwrap();
        std::fs::write(&lease, owner).unwrap();
        let mut command = std::process::Command::new("faketime");
        command.args(["-f", shift]).arg(crate::space::siteline()).args(["run", "--plain"]).current_dir(fresh.root());
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        let waits =
            told.by_ref().map_while(Result::ok).any(|line| line.contains("(computed by process 1 on elsewhere)"));
        assert!(waits, "{shift}: the lease was not respected");
        std::fs::remove_file(&lease).unwrap();
        let done = told.map_while(Result::ok).any(|line| line.contains("done    one"));
        assert!(done && wait(child).0.code == 0, "{shift}: it did not go on");
    }
}

/// A run leases what it is about to start and nothing more: what takes long and has to wait is left to whoever has a slot for it.
#[test]
fn what_waits_for_a_slot_is_left_to_other_runs() {
    let space = Space::of_commands(
        "axes: {n: [1, 2]}\nstages:\n  slow: {run: \"sleep 3; echo ${n} >out\", per: [n], outputs: [out]}\n",
    );
    let start = || {
        let mut command = space.command(&["run", "--json", "-j", "1"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let first = start();
    let began = std::time::Instant::now();
    while std::fs::read_dir(space.path(".siteline/leases")).into_iter().flatten().count() < 2 {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "nothing is leased");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let second = start();
    for run in [second, first] {
        let said = crate::space::Said::from(run.wait_with_output().unwrap());
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert_eq!(said.stdout.matches("\"event\":\"started\"").count(), 1, "{}", said.stdout);
    }
}
