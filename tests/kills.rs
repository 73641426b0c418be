//! SIGKILL of the driver, of workers and of commands, at every named point and at random moments: the next run finishes with the
//! artifacts of a clean one and repeats nothing that was finished.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;

use siteline_cache::sync_point::POINTS;

use crate::reliability::{clean, start, sweep, wait};
use crate::space::{Said, Space};

/// The same with stages of a pack besides commands.
fn with_workers(space: &Space, stages: &str) {
    let manifest = space.read("siteline.yaml").replace("siteline: 1\n", "siteline: 1\npacks: [python3 odd.py]\n");
    space.write("siteline.yaml", manifest + stages);
    crate::packs::bring(space);
}

#[test]
fn a_kill_at_every_sync_point_loses_nothing() {
    let clean = clean();
    for point in POINTS {
        for time in ["1", "2"] {
            let space = sweep();
            let wanted = format!("{point}:{time}");
            let (first, signal) = wait(start(&space, &[("SITELINE_TEST_KILL_AT", &wanted)]));
            if time == "2" && (point.ends_with("-end") || signal != Some(9)) {
                // A short run comes by some points once only.
                continue;
            }
            assert_eq!(signal, Some(9), "{wanted}: the run was not killed: {}", first.stderr);
            space.assert_no_process();
            let second = space.run(&["run", "--plain"]);
            assert_eq!(second.code, 0, "{wanted}: {}", second.stderr);
            let repeated: Vec<_> = first.executed().intersection(&second.executed()).cloned().collect();
            assert!(repeated.is_empty(), "{wanted}: repeated {repeated:?}");
            assert_eq!(space.artifacts(), clean, "{wanted}");
            assert!(space.run(&["verify"]).code == 0, "{wanted}");
        }
    }
}

/// At each point whatever is at work is killed, a command's process group or a worker, and the driver goes on. At the end of a run
/// nothing is at work any more.
#[test]
fn commands_and_workers_that_are_killed_at_every_sync_point_cost_their_own_work() {
    // What is slow begins first and is at work when a slot is free for the fourth of the others.
    let commands = || {
        let space = sweep();
        space.edit(
            "siteline.yaml",
            "stages:\n",
            "stages:\n  slow: {run: \"sleep 1.5; echo x >out\", outputs: [out]}\n",
        );
        space
    };
    let workers = || {
        let space =
            Space::of_commands("axes: {padding: [p, q, r, s]}\nstages:\n  slow: {uses: odd, with: {how: slow}}\n");
        with_workers(&space, "  quick: {uses: odd, per: [padding]}\n");
        space
    };
    for make in [&commands as &dyn Fn() -> Space, &workers] {
        let clean = {
            let space = make();
            space.executed(&["-j", "3"]);
            space.artifacts()
        };
        for point in POINTS.iter().filter(|point| !point.ends_with("-end") && **point != "before-index") {
            let space = make();
            let times = match *point {
                "after-claim" => "5",
                // Of the first commands all may end at once; by then the slow one is at work.
                "after-stage" if clean.len() > 5 => "8",
                _ => "1",
            };
            let wanted = format!("{point}:{times}:children");
            let mut command = space.command(&["run", "--plain", "-j", "3"]);
            let output = command.env("SITELINE_TEST_KILL_AT", &wanted).output().unwrap();
            let first = Said::from(output);
            let killed = first.stderr.contains("SIGKILL");
            assert!(first.code == 1 && killed, "{wanted}: nothing was killed: {}", first.stderr);
            space.assert_no_process();
            let second = space.run(&["run", "--plain", "-j", "3"]);
            assert_eq!(second.code, 0, "{wanted}: {}", second.stderr);
            assert!(first.executed().is_disjoint(&second.executed()), "{wanted}: something was repeated");
            assert_eq!(space.artifacts(), clean, "{wanted}");
        }
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Driver,
    /// A command's whole process group.
    Command,
    Worker,
}

/// Kills it if it is there, and waits for the run. Returns whether it was hit.
fn kill(victim: Victim, space: &Space, child: Child) -> (Said, bool) {
    let at_work = || match victim {
        Victim::Driver => Some(child.id().to_string()),
        Victim::Command => leader(space).map(|pid| format!("-{pid}")),
        Victim::Worker => space.pids("python3").into_iter().next(),
    };
    // Where nothing is at work at this moment, the next thing that is.
    let whom = (0..60).find_map(|_| {
        at_work().or_else(|| {
            std::thread::sleep(Duration::from_millis(2));
            None
        })
    });
    if let Some(whom) = &whom {
        let _ = std::process::Command::new("kill").args(["-9", "--", whom]).status();
    }
    let (said, signal) = wait(child);
    // Of others it counts where the run says so: the work may have ended just before.
    let hit = if victim == Victim::Driver { signal == Some(9) } else { said.stderr.contains("SIGKILL") };
    (said, hit)
}

#[test]
fn two_hundred_kills_at_random_moments_lose_nothing() {
    let make = || {
        let space = sweep();
        space.edit("siteline.yaml", "seed: [0, 1]}", "seed: [0, 1], padding: [p, q, r, s, t, u]}");
        with_workers(&space, "  fit: {uses: odd, per: [padding], with: {how: brief}}\n");
        space
    };
    let clean = {
        let space = make();
        assert_eq!(space.executed(&[]).len(), 37);
        space.artifacts()
    };
    let mut killed = std::collections::BTreeMap::from([(Victim::Driver, 0), (Victim::Command, 0), (Victim::Worker, 0)]);
    let mut state = 88172645463325252u64;
    let mut space = make();
    let mut finished = BTreeSet::new();
    for run in 0.. {
        if killed.values().sum::<usize>() >= 200 {
            break;
        }
        assert!(run < 2000, "only {killed:?} were killed: the fault does not happen");
        let child = start(&space, &[]);
        // Xorshift: any moments will do, the same ones each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_micros(state % 400_000));
        let victim = [Victim::Driver, Victim::Command, Victim::Worker][(state % 3) as usize];
        let (said, hit) = kill(victim, &space, child);
        *killed.entry(victim).or_default() += usize::from(hit);
        let now = said.executed();
        let repeated: Vec<_> = now.intersection(&finished).cloned().collect();
        assert!(repeated.is_empty(), "repeated {repeated:?}");
        finished.extend(now);
        if said.code == 0 {
            assert_eq!(space.artifacts(), clean);
            (space, finished) = (make(), BTreeSet::new());
        }
    }
    assert!(killed.values().all(|times| *times >= 20), "{killed:?}");
    let last = space.run(&["run", "--plain"]);
    assert_eq!(last.code, 0, "{}", last.stderr);
    assert!(last.executed().is_disjoint(&finished));
    assert_eq!(space.artifacts(), clean);
    space.assert_no_process();
}

/// The leader of a command's process group: a shell that works below the store.
fn leader(space: &Space) -> Option<String> {
    let root = std::fs::canonicalize(space.root()).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let at_work = entries.filter(|entry| {
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        cwd.starts_with(&root) && cwd.components().any(|part| part.as_os_str().to_string_lossy().starts_with("work"))
    });
    at_work.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Field 5 is the process group.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2).map(|group| group == pid)).unwrap_or(false)
    })
}
