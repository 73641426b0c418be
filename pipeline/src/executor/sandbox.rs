//! `--sandbox`: a command sees the system read-only, nothing of the project but what it declares, and writes nowhere but in its
//! working directory. Done by bubblewrap, where the kernel lets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How commands are shut in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The project: empty inside, but for what a command declares.
    pub project: PathBuf,
    /// The store's objects, for reading.
    pub objects: PathBuf,
}

impl Sandbox {
    /// A sandbox, if this machine has one.
    ///
    /// # Errors
    /// Why it has none, in words.
    pub fn new(project: &Path, objects: PathBuf) -> Result<Self, String> {
        let tried = Command::new("bwrap")
            .args([
                "--ro-bind",
                "/",
                "/",
                "--dev",
                "/dev",
                "--proc",
                "/proc",
                "--unshare-pid",
                "--cap-drop",
                "ALL",
                "true",
            ])
            .stdin(Stdio::null())
            .output();
        match tried {
            Ok(output) if output.status.success() => Ok(Self { project: project.to_owned(), objects }),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(format!("bubblewrap cannot make a sandbox here: {said}"))
            }
            Err(e) => Err(format!("bubblewrap (`bwrap`) cannot be started: {e}")),
        }
    }

    /// The words in front of a command: `visible` can be read, `work` and a `/tmp` of its own can be written.
    pub(crate) fn words<'p>(&self, work: &Path, visible: impl Iterator<Item = &'p Path>) -> Vec<PathBuf> {
        let word = PathBuf::from;
        let mut words: Vec<PathBuf> =
            ["bwrap", "--unshare-pid", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"].map(word).into();
        words.extend(["--tmpfs", "/tmp", "--tmpfs"].map(word));
        words.push(self.project.clone());
        for path in visible.map(Path::to_owned).chain([self.objects.clone()]) {
            words.extend([word("--ro-bind"), path.clone(), path]);
        }
        words.extend([word("--bind"), work.to_owned(), work.to_owned(), word("--chdir"), work.to_owned()]);
        // What it writes to the project outside its directory fails, instead of going with the sandbox.
        words.extend([word("--remount-ro"), self.project.clone()]);
        // A root within could mount everything anew.
        words.extend(["--cap-drop", "ALL", "--die-with-parent", "--"].map(word));
        words
    }
}
