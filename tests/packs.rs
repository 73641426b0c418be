//! Packs that misbehave: one clear line each, the rest goes on, and nothing is left running.

use std::time::{Duration, Instant};

use crate::space::{Said, Space};

/// A pack of one kind that does as `how` says.
const ODD: &str = r#"
import json, os, signal, subprocess, sys, time
how = sys.argv[1] if len(sys.argv) > 1 else ""
kind = {
    "name": "odd", "summary": "does as it is told", "sources": [], "inputs": [], "outputs": [{"path": "out"}], "resources": {"cpu": 1},
    "params": {"type": "object", "additionalProperties": False, "properties": {
        "how": {"type": "string", "default": "fine"}, "padding": {"type": "string", "default": ""}}},
    "code": {"base": "1"},
}
def say(reply, **fields):
    print(json.dumps({"reply": reply, **fields}), flush=True)
def write(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)
def work(how, folder, instance):
    if how == "slow": time.sleep(1.5)
    if how == "brief": time.sleep(0.05)
    if how == "hang": time.sleep(600)
    if how == "segv": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "nothing": return say("done", environment={})
    if how == "loud":
        for stream in (sys.stdout, sys.stderr):
            for _ in range(10000): stream.write("x" * 100000 + "\n")
    if how == "bytes":
        sys.stdout.buffer.write(b"\xff\xfe bad\n"); sys.stderr.buffer.write(b"\xff bad\n")
    if how == "fork":
        children = [subprocess.Popen(["sleep", "600"], start_new_session=new).pid for new in (False, True)]
        write(os.environ["PIDS"], "pids", " ".join(map(str, children)))
    if how == "forks-and-dies":
        for new in (False, True): subprocess.Popen(["sleep", "600"], start_new_session=new)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "closes":
        os.close(1); os.close(2); time.sleep(600)
    if how == "last words":
        sys.stderr.write("printed without an end by " + folder); sys.stderr.flush()
    if how == "control": write(folder, "a\nb", "x")
    if how == "steers":
        say("metric", name="dice\x1b[2J\nfake", value=0.5)
        say("log", warning=True, text="look\x1b[31m here")
        say("progress", done=1, total=2, unit="im\x1bages")
        return say("failed", message="it \x1b[2J failed")
    if how.startswith("twice"):
        write(folder, "out", "x\n")
        for _ in range(2): say("done", environment={}, **({"instance": instance} if "named" in how else {}))
        return
    if how.startswith("half"): time.sleep(0.5)
    write(folder, "out", "x\n")
    say("done", environment={})
if how == "silent": time.sleep(600)
if how == "deaf":
    # Answers what it is, and reads no more than the beginning of anything else.
    if b"describe" in os.read(0, 100): say("kinds", protocol=2, kinds=[kind])
    else: time.sleep(600)
    sys.exit()
for line in sys.stdin:
    message = json.loads(line)
    if message["request"] == "describe": say("kinds", protocol=2, kinds=[kind])
    else: work(message["params"]["how"], message["output_dir"], message["instance"])
"#;

/// A project with that pack.
pub fn space(stages: &str) -> Space {
    with_argument("", stages)
}

fn with_argument(argument: &str, stages: &str) -> Space {
    let space = Space::of_commands(&format!("packs: [python3 odd.py {argument}]\nstages:\n{stages}"));
    bring(&space);
    space
}

/// Brings that pack's program into a project.
pub fn bring(space: &Space) {
    space.write("odd.py", ODD);
}

/// Runs a stage that misbehaves beside one that does not.
fn misbehaving(how: &str, more: &str) -> (Space, Said) {
    let space = space(&format!("  bad: {{uses: odd, with: {{how: {how}}}{more}}}\n  good: {{uses: odd}}\n"));
    let said = space.run(&["run", "--plain", "-j", "2"]);
    assert!(said.stderr.contains("done    good"), "{how}: the rest did not go on: {}", said.stderr);
    space.assert_no_process();
    (space, said)
}

#[test]
fn a_worker_that_hangs_is_ended_at_its_timeout_and_its_successor_works() {
    let began = Instant::now();
    let (_, said) = misbehaving("hang", ", timeout: 1s, retry: {attempts: 2, backoff: 1s}");
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("attempt 2 of 2 in 1 s"), "{}", said.stderr);
    assert!(said.stderr.contains("FAILED  bad: it took longer than 1 s and was ended"), "{}", said.stderr);
    assert!(began.elapsed() > Duration::from_secs(3), "it did not wait between the attempts");
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// A request that is larger than any pipe, for a pack that does not read it.
#[test]
fn a_worker_that_does_not_read_holds_up_nobody() {
    let padding = "x".repeat(1 << 20);
    let stages = format!(
        "  bad: {{uses: odd, with: {{padding: {padding}}}, timeout: 2s}}\n  good: {{run: echo x >out, outputs: [out]}}\n"
    );
    let space = with_argument("deaf", &stages);
    let began = Instant::now();
    let said = space.run(&["run", "--plain", "-j", "2"]);
    assert!(said.stderr.contains("done    good"), "{}", said.stderr);
    assert!(said.stderr.contains("FAILED  bad: it took longer than 2 s and was ended"), "{}", said.stderr);
    assert!(began.elapsed() < Duration::from_secs(60));
    space.assert_no_process();
}

#[test]
fn a_worker_that_prints_two_gigabytes_fills_neither_disk_nor_memory() {
    let space = space("  bad: {uses: odd, with: {how: loud}}\n");
    let words = format!("ulimit -v 1500000; exec '{}' run --plain", crate::space::siteline().display());
    let output = std::process::Command::new("sh").args(["-c", &words]).current_dir(space.root()).output().unwrap();
    let said = Said::from(output);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let log = space.run(&["log", "--path", "bad"]).stdout;
    let size = std::fs::metadata(log.trim()).unwrap().len();
    assert!(size > 60_000_000 && size < 80_000_000, "the log has {size} bytes");
}

#[test]
fn crashes_missing_outputs_bad_bytes_and_names_are_one_line_each() {
    let (_, said) = misbehaving("segv", "");
    assert!(
        said.stderr.contains("FAILED  bad: its worker died: it was ended by signal 11 (SIGSEGV"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("  log: "), "{}", said.stderr);
    let (_, said) = misbehaving("nothing", "");
    assert!(said.stderr.contains("FAILED  bad: it ended without its output `out`"), "{}", said.stderr);
    let (space, said) = misbehaving("bytes", "");
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(space.run(&["log", "bad"]).stdout.matches(" bad").count(), 2);
    let (_, said) = misbehaving("control", "");
    assert!(
        said.stderr.contains("a name with control characters") || said.stderr.contains("has control characters"),
        "{}",
        said.stderr
    );
}

/// What a worker prints belongs to the instance that it was at work on, up to the last word, however many follow.
#[test]
fn prints_are_in_the_log_of_their_own_instance() {
    let space = space("  bad: {uses: odd, with: {how: last words}, per: [padding]}\n");
    space.edit("siteline.yaml", "packs:", "axes: {padding: {from: words.txt}}\npacks:");
    space.write("words.txt", (0..60).map(|n| format!("w{n}\n")).collect::<String>());
    let said = space.run(&["run", "--plain", "-j", "1"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let mut folders = std::collections::BTreeSet::new();
    for n in 0..60 {
        let log = space.run(&["log", &format!("bad[padding=w{n}]")]).stdout;
        let printed: Vec<&str> = log.split("printed without an end by ").skip(1).collect();
        assert_eq!(printed.len(), 1, "{n}: {log}");
        folders.insert(printed[0].trim().to_owned());
    }
    assert!(folders.len() > 1, "{folders:?}");
}

/// Whatever a stage says, no verb sends a control character to the terminal.
#[test]
fn nothing_that_a_worker_says_steers_the_terminal() {
    let (space, said) = misbehaving("steers", "");
    assert!(said.stderr.contains(r"it \u{1b}[2J failed"), "{}", said.stderr);
    assert!(said.stderr.contains(r"look\u{1b}[31m here"), "{}", said.stderr);
    let verbs: [&[&str]; 6] =
        [&["run", "--json"], &["status"], &["diff"], &["history", "bad"], &["trace", "good"], &["plan", "-v"]];
    for words in verbs {
        let said = space.run(words);
        let steers = |text: &str| text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        assert!(!steers(&said.stdout) && !steers(&said.stderr), "{words:?}: {:?}{:?}", said.stdout, said.stderr);
    }
}

/// It died, or it can answer no more: whatever it leaves behind, its instance fails at once.
#[test]
fn a_worker_that_is_gone_is_noticed_whoever_holds_its_pipes() {
    for how in ["forks-and-dies", "closes"] {
        let space = space(&format!("  bad: {{uses: odd, with: {{how: {how}}}}}\n  good: {{uses: odd}}\n"));
        let began = Instant::now();
        let said = space.run(&["run", "--plain", "-j", "1"]);
        assert!(said.stderr.contains("FAILED  bad: its worker died"), "{how}: {}", said.stderr);
        assert!(said.stderr.contains("done    good"), "{how}: {}", said.stderr);
        assert!(began.elapsed() < Duration::from_secs(60), "{how}");
        space.assert_no_process();
    }
}

#[test]
fn children_of_a_worker_end_with_the_run() {
    let space = space("  bad: {uses: odd, with: {how: fork}}\n");
    let output = space.command(&["run", "--plain"]).env("PIDS", space.root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pids = space.read("pids");
    assert_eq!(pids.split(' ').count(), 2, "the children never were");
    for pid in pids.split(' ') {
        space.assert_ended(pid);
    }
    space.assert_no_process();
}

#[test]
fn a_pack_that_never_says_what_it_is_is_given_up() {
    let space = with_argument("silent", "  bad: {uses: odd}\n");
    let began = Instant::now();
    let output = space.command(&["plan"]).env("SITELINE_TEST_PACK_ANSWERS_WITHIN", "1").output().unwrap();
    let said = Said::from(output);
    assert!(said.code == 2 && said.stderr.contains("it gave no answer within 1 s and was ended"), "{}", said.stderr);
    assert!(began.elapsed() < Duration::from_secs(30));
    space.assert_no_process();
}

/// An answer too many is nobody else's answer.
#[test]
fn a_pack_that_answers_twice_is_not_believed_of_the_next_instance() {
    for how in ["twice", "twice named"] {
        let space = space(&format!(
            "  first: {{uses: odd, with: {{how: {how}}}}}\n  second: {{uses: odd, with: {{how: half}}}}\n"
        ));
        for _ in 0..3 {
            let said = space.run(&["run", "--plain", "-j", "1", "--fail-fast"]);
            assert!(said.stderr.contains("done    first") || said.stderr.contains("1 cached"), "{}", said.stderr);
            if said.code == 0 {
                break;
            }
            // Without a name an answer that comes late enough is believed; the output is missed then.
            let told = ["its pack answered for `first`", "it ended without its output"];
            assert!(
                told[..if how == "twice" { 2 } else { 1 }].iter().any(|t| said.stderr.contains(t)),
                "{}",
                said.stderr
            );
        }
        assert_eq!(space.output("second", "out"), b"x\n", "{how}");
    }
}

#[test]
fn descriptions_that_cannot_be_used_say_why() {
    let kind = |more: &str| {
        format!(
            "dict({{'name': 'k', 'summary': 's', 'params': {{'type': 'object', 'properties': {{}}}}, 'inputs': [], 'sources': [], 'outputs': [{{'path': 'out'}}], 'resources': {{}}, 'code': {{'base': '1'}}}}, **{more})"
        )
    };
    let kinds = |more: &str| format!("{{'reply': 'kinds', 'protocol': 2, 'kinds': [{}]}}", kind(more));
    let cases = [
        ("{'reply': 'kinds', 'protocol': 2, 'kinds': [{'name': 'k'}]}".to_owned(), "missing field `summary`"),
        (kinds("{'outputs': [{'path': 'out', 'purpose': 'results'}]}"), "unknown variant `results`"),
        (kinds("{'outputs': [{'path': '../../x'}]}"), "the output \"../../x\" does not stay in its folder"),
        (kinds("{'outputs': [{'path': '/tmp/x'}]}"), "does not stay in its folder"),
        (kinds("{'name': 'k x\\x1b[31m'}"), "cannot be the name of a stage kind"),
        (
            kinds("{'inputs': [{'name': '../x', 'role': 'plain', 'files': ['*'], 'many': False, 'optional': False}]}"),
            "\"../x\" cannot be the name of an input",
        ),
        ("{'reply': 'failed', 'message': 'no licence'}".to_owned(), "no licence"),
        ("'junk'".to_owned(), "its answer cannot be read"),
    ];
    for (answer, wanted) in cases {
        let space = Space::of_commands("packs: [python3 odd.py]\nstages: {a: {uses: k}}\n");
        space.write(
            "odd.py",
            format!("import json, sys\nfor line in sys.stdin: print(json.dumps({answer}), flush=True)\n"),
        );
        let said = space.run(&["plan"]);
        assert_eq!(said.code, 2, "{answer}: {}{}", said.stdout, said.stderr);
        assert!(said.stderr.contains(wanted), "{answer}: {}", said.stderr);
    }
}
