//! Watching a run and asking what became of it: logs that grow, what is at work, what is old.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::space::{Said, Space};

fn spawn(space: &Space, words: &[&str]) -> Child {
    space.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Asks until the answer is there, for a minute.
fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn at_work(space: &Space) -> BTreeSet<String> {
    let status: serde_json::Value = serde_json::from_str(&space.run(&["status", "--json"]).stdout).unwrap();
    status["at_work"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn has_run(space: &Space) -> Option<()> {
    (!space.run(&["status"]).stdout.contains("never run")).then_some(())
}

/// A log is followed from before its instance starts until it has ended, and `status` names it meanwhile; also where it runs again
/// on purpose, and while another run of the same manifest begins.
#[test]
fn a_log_is_followed_and_status_tells_what_is_at_work() {
    let space = Space::of_commands(
        "stages:\n  first: {run: \"sleep 0.5; echo >out\", outputs: [out]}\n  slow: {run: \"printf 'h\\\\303'; sleep 0.5; printf '\\\\251\\\\nline 2\\\\n'; sleep 2; echo line 3; echo >out\", needs: {first: first}, outputs: [out]}\n",
    );
    for force in [&["run", "--plain"][..], &["run", "--plain", "--force"]] {
        let known = space.run(&["status"]).stdout;
        let run = spawn(&space, force);
        wait_for(|| has_run(&space).filter(|()| space.run(&["status"]).stdout != known));
        wait_for(|| space.run(&["status"]).stdout.contains("(running)").then_some(()));
        let follows = spawn(&space, &["log", "-f", "slow"]);
        wait_for(|| at_work(&space).contains("slow").then_some(()));
        let beside = spawn(&space, &["run", "--plain", "--only", "first"]);
        let followed = Said::from(follows.wait_with_output().unwrap());
        assert_eq!(followed.code, 0, "{}", followed.stderr);
        assert!(followed.stdout.contains("h\u{e9}\nline 2\nline 3\n"), "{:?}", followed.stdout);
        assert!(followed.stderr.contains("[executed in "), "{}", followed.stderr);
        assert!(run.wait_with_output().unwrap().status.success());
        assert!(beside.wait_with_output().unwrap().status.success());
    }
    assert_eq!(space.run(&["log", "-f", "*"]).code, 2);
}

/// Every attempt is shown, and one that failed is no success.
#[test]
fn a_log_is_followed_through_its_attempts() {
    let space = Space::of_commands(
        "stages:\n  bad: {run: \"sleep 1; echo attempt $RANDOM$$; sleep 1; exit 3\", outputs: [out], retry: {attempts: 3, backoff: 1s}}\n",
    );
    // It waits for a first run.
    let follows = spawn(&space, &["log", "-f", "bad"]);
    let run = spawn(&space, &["run", "--plain"]);
    let followed = Said::from(follows.wait_with_output().unwrap());
    assert_eq!(followed.code, 1);
    let why = space.run(&["why", "bad"]).stdout;
    assert!(why.contains("it has no result yet; it failed in") && why.contains("exit code 3"), "{why}");
    assert_eq!(followed.stdout.matches("\nattempt ").count(), 3, "{}", followed.stdout);
    assert_eq!(followed.stdout.matches("[siteline: another attempt]").count(), 2, "{}", followed.stdout);
    assert_eq!(followed.stdout.matches("[siteline: it ended with exit code 3]").count(), 3, "{}", followed.stdout);
    assert!(followed.stderr.contains("[failed in ") && followed.stderr.contains("exit code 3"), "{}", followed.stderr);
    assert!(!run.wait_with_output().unwrap().status.success());
}

/// What a run could not make anew is said to be old, what ran on purpose is in the history, and lists of differences end.
#[test]
fn old_results_repeated_runs_and_long_lists_are_told() {
    let space = Space::of_commands(
        "axes: {n: [1]}\nstages:\n  fit: {run: \"test ! -e bad; cat files/* >out\", per: [n], files: [files/*], outputs: [out], results: [out], resources: {cpu: 1000}}\n",
    );
    for index in 0..40 {
        space.write(&format!("files/{index:02}"), "1");
    }
    let said = space.run(&["run", "--plain"]);
    assert!(said.stderr.contains("`fit` asks for 1000 CPU slots and gets "), "{}", said.stderr);
    assert!(!said.stdout.contains("earlier run"), "{}", said.stdout);
    assert_eq!(space.run(&["run", "--plain", "--force"]).code, 0);
    let history = space.run(&["history", "fit"]).stdout;
    assert!(history.contains("executed once more in run") && history.matches("took").count() == 1, "{history}");
    for index in 0..40 {
        space.write(&format!("files/{index:02}"), "2");
    }
    space.edit("siteline.yaml", "test ! -e bad", "exit 3");
    let why = space.run(&["why", "fit"]).stdout;
    assert!(why.lines().count() == 22 && why.contains("more differences (`-v` shows all)"), "{why}");
    assert_eq!(space.run(&["why", "-v", "fit"]).stdout.lines().count(), 42);
    let said = space.run(&["run", "--plain"]);
    assert!(said.code == 1 && said.stdout.contains("Still of an earlier run: "), "{}", said.stdout);
    // What was not asked for is not out of date.
    let space = Space::of_commands(
        "axes: {n: [1, 2]}\nstages:\n  fit: {run: \"echo ${n} >out\", per: [n], outputs: [out], results: [out]}\n",
    );
    assert_eq!(space.run(&["run", "--plain"]).code, 0);
    let said = space.run(&["run", "--plain", "--only", "fit[n=1]"]);
    assert!(said.code == 0 && !said.stdout.contains("earlier run"), "{}", said.stdout);
    // Nor is a run in the history twice, whose result is gone.
    std::fs::remove_dir_all(space.path(".siteline/records")).unwrap();
    std::fs::remove_file(space.path(".siteline/ledger.db")).unwrap();
    let history = space.run(&["history", "fit[n=1]"]).stdout;
    assert!(!history.contains("once more") && history.contains("never executed"), "{history}");
}

/// Two instances with one key: the second is told to be what the first is, by every verb.
#[test]
fn twins_are_told_of_by_name() {
    let space = Space::of_commands(
        "stages:\n  one: {run: \"echo hello; echo 1 >out\", outputs: [out]}\n  two: {run: \"echo hello; echo 1 >out\", outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain"]);
    let has = |text: &str| said.stderr.contains(text);
    let both = ["same    one (another instance", "same    two (another instance"];
    assert!(both.into_iter().filter(|text| has(text)).count() == 1 && !has("another run"), "{}", said.stderr);
    let (first, second) = if has(both[0]) { ("two", "one") } else { ("one", "two") };
    let log = space.run(&["log", second]);
    assert!(log.code == 0 && log.stdout.contains("\nhello\n"), "{}{}", log.stdout, log.stderr);
    assert!(log.stderr.contains(&format!("`{second}` has the result of `{first}`")), "{}", log.stderr);
    let history = space.run(&["history", second]).stdout;
    assert!(history.contains(&format!("{second} never ran itself: it has the result of {first}")), "{history}");
}
