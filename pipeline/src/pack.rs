//! Packs: programs that hold stage kinds, and the description that they give of themselves.
//!
//! A description is kept beside the program as `PROGRAM.kinds.json`, with the program's size, times and digest. So `plan`
//! starts no worker, and works where the program's libraries are absent.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use siteline_cache::Digest;

use crate::executor::processes;
use crate::printable::{on_one_line, printable};
use crate::protocol::{self, Reply, Request, StageKind};

/// Where a kind's work is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// By workers that this command starts.
    Pack(Vec<String>),
    /// By a command of the manifest's.
    Command,
}

/// A program and its kinds.
#[derive(Clone, Debug)]
pub struct Pack {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its kinds, by name.
    pub kinds: Vec<StageKind>,
}

/// Why a pack cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The program is not there.
    #[error("the worker {} is not there", on_one_line(&program.display().to_string()))]
    Missing {
        /// Where it was looked for.
        program: PathBuf,
    },
    /// The program does not start or does not answer.
    #[error("the worker {} does not describe its stage kinds: {reason}", on_one_line(&program.display().to_string()))]
    Silent {
        /// The program.
        program: PathBuf,
        /// What it or the system said.
        reason: String,
    },
    /// What it was asked for could not be done.
    #[error("{message}")]
    Failed {
        /// What it said.
        message: String,
    },
    /// The program speaks another version of the protocol.
    #[error("the worker {} speaks version {found} of the stage protocol; this siteline speaks {}", on_one_line(&program.display().to_string()), protocol::VERSION)]
    Version {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What lies beside the program.
#[derive(Serialize, Deserialize)]
struct Description {
    size: u64,
    modified_ns: u64,
    digest: Digest,
    protocol: u32,
    kinds: Vec<StageKind>,
}

impl Pack {
    /// Opens a pack by its description if that is up to date, else by asking the program.
    ///
    /// # Errors
    /// A program that is absent, silent, or of another version.
    pub fn open(program: &Path) -> Result<Self, PackError> {
        let missing = || PackError::Missing { program: program.to_owned() };
        let program = std::fs::canonicalize(program).map_err(|_| missing())?;
        let meta = std::fs::metadata(&program).map_err(|_| missing())?;
        let modified_ns = meta
            .modified()
            .ok()
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |d| d.as_nanos() as u64);
        let mut beside = program.clone().into_os_string();
        beside.push(".kinds.json");
        let beside = PathBuf::from(beside);
        let kept: Option<Description> =
            std::fs::read(&beside).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let digest = || Digest::of_file(&program).map(|(digest, _)| digest);
        if let Some(kept) = kept.filter(|kept| kept.protocol == protocol::VERSION && kept.size == meta.len()) {
            let same_time = kept.modified_ns == modified_ns;
            if same_time || digest().is_ok_and(|digest| digest == kept.digest) {
                if !same_time {
                    // The same program, copied or touched: it is not hashed again next time.
                    keep(&beside, &Description { modified_ns, kinds: kept.kinds.clone(), ..kept });
                }
                return Ok(Self { command: vec![text_of(&program)], kinds: kept.kinds });
            }
        }
        let kinds = describe(&[text_of(&program)])?;
        if let Ok(digest) = digest() {
            let description = Description {
                size: meta.len(),
                modified_ns,
                digest,
                protocol: protocol::VERSION,
                kinds: kinds.clone(),
            };
            keep(&beside, &description);
        }
        Ok(Self { command: vec![text_of(&program)], kinds })
    }

    /// Asks a pack that a manifest names, by path or as a command line. Files of the project may be named relative to `root`.
    ///
    /// # Errors
    /// A program that is absent, silent, or of another version.
    pub fn ask(text: &str, root: &Path) -> Result<Self, PackError> {
        let silent = |reason: &str| PackError::Silent { program: text.into(), reason: reason.to_owned() };
        let words =
            shlex::split(text).filter(|words| !words.is_empty()).ok_or_else(|| silent("it is no command line"))?;
        let command: Vec<String> = words
            .into_iter()
            .map(|word| if root.join(&word).is_file() { text_of(&root.join(&word)) } else { word })
            .collect();
        let kinds = describe(&command)?;
        Ok(Self { command, kinds })
    }
}

impl Pack {
    /// Whether the program starts and answers here and now, whatever its description says.
    ///
    /// # Errors
    /// What keeps it from doing so.
    pub fn is_alive(&self) -> Result<(), PackError> {
        describe(&self.command).map(|_| ())
    }
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn start(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// A pack that has to load large libraries first is far below this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// After this whoever waits is told what for.
const SILENCE: Duration = Duration::from_secs(3);

/// Tests do not wait that long.
fn answers_within() -> Duration {
    let told = std::env::var("SITELINE_TEST_PACK_ANSWERS_WITHIN").ok().and_then(|text| text.parse().ok());
    told.map_or(ANSWERS_WITHIN, Duration::from_secs_f64)
}

/// The processes of one question, and the end that is made of them: at once when it was answered, or when it takes too long.
struct Asked {
    id: String,
    over: Arc<AtomicBool>,
    answered: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Asked {
    fn start(id: String, program: String) -> Self {
        let (answered, waits) = channel::<()>();
        let over = Arc::new(AtomicBool::new(false));
        let (told, group) = (over.clone(), id.clone());
        let thread = std::thread::spawn(move || {
            let is_silent_for = |time| waits.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            let all = answers_within();
            let first = SILENCE.min(all / 2);
            if !is_silent_for(first) {
                return;
            }
            let left = all - first;
            tracing::warn!(
                "waiting for `{program}` to describe its stage kinds, for {:.0} s more at most",
                left.as_secs_f64()
            );
            if is_silent_for(left) {
                told.store(true, Ordering::SeqCst);
                processes::end_all_of(&group);
            }
        });
        Self { id, over, answered: Some(answered), thread: Some(thread) }
    }

    /// Ends what it left behind. Whether it took too long.
    fn end(mut self) -> bool {
        drop(self.answered.take());
        let _ = self.thread.take().map(JoinHandle::join);
        processes::end_all_of(&self.id);
        self.over.load(Ordering::SeqCst)
    }
}

/// What a program says, up to a length that no description has.
fn said_by(stream: Option<impl Read>) -> String {
    const MOST: u64 = 64 << 20;
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let _ = stream.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asks a program for its kinds.
fn describe(words: &[String]) -> Result<Vec<StageKind>, PackError> {
    let program = PathBuf::from(words.join(" "));
    let silent = |reason: String| PackError::Silent { program: program.clone(), reason };
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let id = format!("describe-{}-{}", std::process::id(), ASKED.fetch_add(1, Ordering::Relaxed));
    let mut command = start(words);
    command.stderr(Stdio::piped()).env(processes::RUN_VARIABLE, &id);
    let mut child = command.spawn().map_err(|e| silent(e.to_string()))?;
    let asked = Asked::start(id, words.join(" "));
    let request = serde_json::to_string(&Request::Describe).expect("a request is JSON");
    if let Some(mut stdin) = child.stdin.take() {
        // A program that cannot start has closed its end; what it said of that is on its standard error.
        let _ = writeln!(stdin, "{request}");
    }
    let stderr = child.stderr.take();
    let errors = std::thread::spawn(move || said_by(stderr));
    let text = said_by(child.stdout.take());
    let said = errors.join().unwrap_or_default();
    // One that said all is about to end by itself, and how it ends may be worth telling.
    processes::wait_for_end(child.id(), Some(Duration::from_secs(1)));
    if asked.end() {
        let _ = child.wait();
        return Err(silent(format!("it gave no answer within {} s and was ended", answers_within().as_secs_f64())));
    }
    let status = child.wait().map_err(|e| silent(e.to_string()))?;
    let reply = text.lines().find_map(|line| serde_json::from_str::<Reply>(line).ok());
    match reply {
        Some(Reply::Kinds { protocol, kinds }) if protocol == protocol::VERSION => {
            match kinds.iter().find_map(StageKind::misnamed) {
                Some(misnamed) => Err(silent(misnamed)),
                None => Ok(kinds),
            }
        }
        Some(Reply::Failed { message, .. }) => Err(silent(printable(&message))),
        Some(Reply::Kinds { protocol, .. }) => Err(PackError::Version { program: program.clone(), found: protocol }),
        _ => {
            let said = printable(said.trim());
            let unread = || text.lines().find_map(unread).map(|why| format!("its answer cannot be read: {why}"));
            Err(silent(if said.is_empty() {
                unread().unwrap_or_else(|| format!("it ended with {status}"))
            } else {
                said
            }))
        }
    }
}

/// Why a line that may have been meant as an answer is none.
fn unread(line: &str) -> Option<String> {
    let error = serde_json::from_str::<Reply>(line).err()?;
    (!line.trim().is_empty()).then(|| format!("{error}: {}", printable(&line.chars().take(120).collect::<String>())))
}

/// Best effort: a program in a folder that cannot be written is asked each time.
fn keep(beside: &Path, description: &Description) {
    let Ok(text) = serde_json::to_vec_pretty(description) else { return };
    let folder = beside.parent().unwrap_or(Path::new("."));
    // It tells no more than the program, which others may start as well.
    let readable = std::fs::Permissions::from_mode(0o644);
    if let Ok(mut file) = tempfile::NamedTempFile::new_in(folder)
        && file.write_all(&text).is_ok()
        && file.as_file().set_permissions(readable).is_ok()
    {
        let _ = file.persist(beside);
    }
}

impl Pack {
    /// Has one request carried out outside any store, by a worker of its own.
    ///
    /// # Errors
    /// A worker that does not start, and what the stage said when it failed.
    pub fn carry_out(&self, request: protocol::RunRequest, tell: &mut dyn FnMut(&Reply)) -> Result<(), PackError> {
        let silent = |reason: String| PackError::Silent { program: self.command.join(" ").into(), reason };
        let mut child = start(&self.command).spawn().map_err(|e| silent(e.to_string()))?;
        let line = serde_json::to_string(&Request::Run(Box::new(request))).map_err(|e| silent(e.to_string()))?;
        // The worker lives as long as its standard input: it is held until the answer is there.
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            writeln!(stdin, "{line}").map_err(|e| silent(e.to_string()))?;
        }
        let stdout = child.stdout.take().ok_or_else(|| silent("it has no standard output".into()))?;
        let mut result = Err(silent("it ended without an answer".into()));
        for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)) {
            let line = line.map_err(|e| silent(e.to_string()))?;
            let Ok(reply) = serde_json::from_str::<Reply>(&line) else { continue };
            tell(&reply);
            match reply {
                Reply::Done { .. } => result = Ok(()),
                Reply::Failed { message, .. } => result = Err(PackError::Failed { message: printable(&message) }),
                _ => continue,
            }
            break;
        }
        drop(stdin);
        let _ = child.wait();
        result
    }
}
