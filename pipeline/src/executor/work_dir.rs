//! The private working directory of a command: inputs as links, parameters as a file, outputs taken from declared places only.
//!
//! ```text
//! inputs/NAME/FILE                    what the instance reads by NAME
//! inputs/NAME/AXIS=VALUE,.../FILE     the same where several are gathered
//! params.json                         `with`, after substitution
//! PATH/OF/SCRIPT, PATH/OF/DATA        the project's files that the stage lists
//! ```
//!
//! Thousands of instances read the same artifacts: the folder of links to an artifact's objects is made once in a run (a
//! [`View`]) and linked to. Directories are used again, emptied, as file systems are slow at making and removing inodes.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use siteline_cache::{Digest, Output, Store};

use super::Failure;

/// What a command finds and leaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Every artifact that it reads.
    pub(crate) inputs: Vec<Input>,
    /// Data: path in the working directory and where the file lies.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// Code, likewise. It is copied: a script that is a link would import its neighbours from the project, declared or not.
    pub(crate) code: Vec<(String, PathBuf)>,
    /// Content of `params.json`.
    pub(crate) params: Option<String>,
    /// Declared outputs; a name ending in `/` is a folder.
    pub(crate) outputs: Vec<String>,
}

/// An artifact among the inputs.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The input's name.
    pub(crate) name: String,
    /// Where several are gathered, what tells this one from the others.
    pub(crate) gathered: Option<String>,
    /// Whether others read it as well.
    pub(crate) shared: bool,
    /// The key of the execution that made it.
    pub(crate) key: Digest,
    /// Its files.
    pub(crate) files: Vec<Output>,
}

/// A folder of links, shared by everything that reads the same.
#[derive(Debug)]
struct View {
    path: PathBuf,
    /// Symbolic links to the folder, by the depth at which they stand below the workshop's root. Whoever shows the view gets
    /// a hard link to one of them, which costs no inode; relative ones are quick to follow.
    links: [OnceLock<PathBuf>; 3],
    folders: Vec<Folder>,
    /// Views that it links to.
    parts: Vec<Arc<View>>,
}

/// A view as it stands in the `inputs` of a working directory.
const IN_INPUTS: usize = 2;

impl View {
    /// Shows the view as `place`, which stands `depth` folders below the workshop's root.
    fn show(&self, place: &Path, depth: usize) -> io::Result<()> {
        let known = &self.links[depth - 1];
        if known.get().is_none() {
            let link = self.path.with_extension(format!("link{depth}"));
            let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
            target.push(self.path.file_name().unwrap_or_default());
            match symlink(&target, &link) {
                // Somebody else was first.
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let _ = known.set(link);
        }
        known.get().map_or_else(|| Err(io::ErrorKind::NotFound.into()), |link| fs::hard_link(link, place))
    }

    /// Whether nobody has put anything into it since `started`: as root a program can.
    fn is_untouched(&self, started: SystemTime) -> bool {
        let same = |folder: &Folder| {
            let modified = fs::metadata(&folder.path).and_then(|meta| meta.modified()).ok();
            // Times move in steps: right after it was made a folder may have changed without its time doing so.
            let settled = folder.made + CLOCK_STEP < started;
            modified == Some(folder.made) && (settled || entries(&folder.path) == Some(folder.entries))
        };
        self.folders.iter().all(same) && self.parts.iter().all(|part| part.is_untouched(started))
    }
}

/// A folder of a view as it was made.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    made: SystemTime,
    entries: usize,
}

/// More than one step of the clock that file systems stamp with.
const CLOCK_STEP: Duration = Duration::from_millis(20);

fn entries(folder: &Path) -> Option<usize> {
    fs::read_dir(folder).ok().map(Iterator::count)
}

/// What a view shows: artifacts, each with what tells it from the others.
type ViewId = Vec<(String, Digest)>;

/// Where the commands of a run work.
pub(crate) struct Workshop {
    pub(crate) store: Arc<Store>,
    root: tempfile::TempDir,
    made: AtomicUsize,
    free: Mutex<Vec<PathBuf>>,
    views: Mutex<HashMap<ViewId, Arc<View>>>,
}

/// A working directory in use, and the views that it shows.
#[derive(Debug)]
pub(crate) struct WorkDir {
    pub(crate) path: PathBuf,
    views: Vec<Arc<View>>,
}

impl Workshop {
    pub(crate) fn new(store: Arc<Store>) -> Result<Self, siteline_cache::StoreError> {
        let root = store.scratch()?;
        Ok(Self { store, root, made: AtomicUsize::new(0), free: Mutex::default(), views: Mutex::default() })
    }

    /// The folder that holds all views.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    fn fresh(&self, prefix: &str) -> io::Result<PathBuf> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.root.path().join(format!("{prefix}{number}"));
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// A directory with everything that a command finds.
    pub(crate) fn set_up(&self, layout: &Layout) -> io::Result<WorkDir> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let path = free.map_or_else(|| self.fresh("work"), Ok)?;
        let mut dir = WorkDir { path, views: Vec::new() };
        self.link_inputs(&mut dir, layout)?;
        let dir_path = &dir.path;
        let mut made: BTreeSet<PathBuf> = BTreeSet::new();
        let mut place = |name: &str| -> io::Result<PathBuf> {
            let path = dir_path.join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != dir_path)
                && made.insert(parent.to_owned())
            {
                fs::create_dir_all(parent)?;
            }
            Ok(path)
        };
        // Code first: what is listed as data as well is there already, and copying onto a link would write to the project.
        for (name, file) in &layout.code {
            fs::copy(file, place(name)?)?;
        }
        for (name, file) in &layout.files {
            match symlink(file, place(name)?) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        for output in &layout.outputs {
            // A folder is there already, and so is the folder of a file: `>results/a.txt` just works.
            let path = place(output)?;
            if output.ends_with('/') {
                fs::create_dir_all(path)?;
            }
        }
        if let Some(params) = &layout.params {
            let path = place("params.json")?;
            // The project may have a file of that name, which is linked here.
            let _ = fs::remove_file(&path);
            fs::write(path, params)?;
        }
        Ok(dir)
    }

    fn link_inputs(&self, dir: &mut WorkDir, layout: &Layout) -> io::Result<()> {
        let mut rest = layout.inputs.as_slice();
        let inputs = dir.path.join("inputs");
        // What the command before this one was shown, and this one is not, goes.
        for entry in fs::read_dir(&inputs).into_iter().flatten().flatten() {
            if layout.inputs.iter().all(|input| entry.file_name() != input.name.as_str()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        if rest.is_empty() {
            let _ = fs::remove_dir(&inputs);
        } else if !inputs.is_dir() {
            fs::create_dir(&inputs)?;
        }
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|input| input.name == first.name).count();
            let (group, others) = rest.split_at(count);
            rest = others;
            let place = inputs.join(&first.name);
            // What nobody else reads needs no view.
            if let ([one], false) = (group, first.shared || first.gathered.is_some()) {
                self.link_files(&one.files, &place)?;
                continue;
            }
            if group.iter().any(|input| !input.shared) {
                dir.views.extend(self.link_several(group, &place)?.0);
                continue;
            }
            let view = self.view(group)?;
            view.show(&place, IN_INPUTS).or_else(|_| {
                // A folder of the command before this one.
                fs::remove_dir(&place)?;
                view.show(&place, IN_INPUTS)
            })?;
            dir.views.push(view);
        }
        Ok(())
    }

    /// The view of what is read by one input.
    fn view(&self, group: &[Input]) -> io::Result<Arc<View>> {
        match group {
            [one] if one.gathered.is_none() => self.artifact(one),
            _ => {
                let id = |input: &Input| (input.gathered.clone().unwrap_or_default(), input.key);
                self.known(group.iter().map(id).collect(), || {
                    let path = self.fresh("several")?;
                    let (parts, folders) = self.link_several(group, &path)?;
                    seal(path, folders, parts)
                })
            }
        }
    }

    /// Links to what is read by one input, a folder for each artifact. Returns the views among them and the folders that were
    /// made for the rest.
    fn link_several(&self, group: &[Input], path: &Path) -> io::Result<(Vec<Arc<View>>, Vec<PathBuf>)> {
        if !path.is_dir() {
            fs::create_dir(path)?;
        }
        let depth = path.components().count() - self.root().components().count();
        let show = |input: &Input| -> io::Result<(Option<Arc<View>>, Vec<PathBuf>)> {
            let place = path.join(input.gathered.as_deref().unwrap_or("all"));
            if input.shared {
                let part = self.artifact(input)?;
                part.show(&place, depth)?;
                return Ok((Some(part), Vec::new()));
            }
            let mut folders = self.link_files(&input.files, &place)?;
            folders.push(place);
            Ok((None, folders))
        };
        // A table reads thousands.
        let shown: Vec<_> = group.par_iter().with_min_len(16).map(show).collect::<io::Result<_>>()?;
        let (parts, folders): (Vec<_>, Vec<_>) = shown.into_iter().unzip();
        Ok((parts.into_iter().flatten().collect(), folders.into_iter().flatten().collect()))
    }

    /// The view of one artifact.
    fn artifact(&self, input: &Input) -> io::Result<Arc<View>> {
        self.known(vec![("artifact".to_owned(), input.key)], || {
            let path = self.fresh("view")?;
            let folders = self.link_files(&input.files, &path)?;
            seal(path, folders, Vec::new())
        })
    }

    /// Links to an artifact's objects. Returns the folders below `path` that were made for them.
    fn link_files(&self, files: &[Output], path: &Path) -> io::Result<Vec<PathBuf>> {
        if !path.is_dir() {
            fs::create_dir(path)?;
        }
        let mut folders = BTreeSet::new();
        for file in files {
            let link = path.join(&file.path);
            if let Some(parent) = link.parent().filter(|parent| *parent != path)
                && folders.insert(parent.to_owned())
            {
                fs::create_dir_all(parent)?;
            }
            let object = self.store.object_path(&file.digest);
            // An object may have no more links to it than the file system allows.
            fs::hard_link(&object, &link).or_else(|_| symlink(&object, &link))?;
        }
        Ok(folders.into_iter().collect())
    }

    fn known(&self, id: ViewId, make: impl FnOnce() -> io::Result<View>) -> io::Result<Arc<View>> {
        let find = |id: &ViewId| self.views.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(view) = find(&id) {
            return Ok(view);
        }
        // Made outside the lock: two may make the same at once, and the first that is done is kept.
        let view = Arc::new(make()?);
        Ok(self.views.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_insert(view).clone())
    }

    /// Whether everything that a command was shown is as it was: its links, and the objects behind them.
    pub(crate) fn altered(&self, dir: &WorkDir, layout: &Layout, started: SystemTime) -> Option<String> {
        if !dir.views.iter().all(|view| view.is_untouched(started)) {
            // Whoever reads the same next gets views of its own.
            self.views.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return Some("it wrote into its `inputs`, which others read".to_owned());
        }
        let objects = layout.inputs.iter().flat_map(|input| &input.files);
        objects.into_iter().find_map(|file| {
            let modified = fs::metadata(self.store.object_path(&file.digest)).and_then(|meta| meta.modified());
            let untouched = modified.is_ok_and(|time| time + CLOCK_STEP < started);
            let damaged = !untouched && self.store.check_object(&file.digest).map_or(true, |checked| checked.is_err());
            damaged.then(|| {
                format!("it wrote to its input `{}`, which is set aside and made anew when it is next needed: a command writes to its own directory alone", file.path)
            })
        })
    }

    /// Empties a directory for the next command.
    pub(crate) fn clear(&self, dir: WorkDir) {
        if empty(&dir.path, 0).is_ok() {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(dir.path);
        }
    }
}

/// Removes what is in a folder; `inputs` and the folders in it stay, emptied.
fn empty(folder: &Path, depth: usize) -> io::Result<()> {
    /// From here on it is worth waking other threads.
    const MANY: usize = 64;
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let clear = |entry: &fs::DirEntry| {
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())
        } else if depth == 1 || (depth == 0 && entry.file_name() == "inputs") {
            empty(&entry.path(), depth + 1)
        } else {
            fs::remove_dir_all(entry.path())
        }
    };
    match entries.len() {
        0..MANY => entries.iter().try_for_each(clear),
        _ => entries.par_iter().with_min_len(16).try_for_each(clear),
    }
}

/// Notes the times of a finished view's folders and takes the right to write away.
fn seal(path: PathBuf, mut folders: Vec<PathBuf>, parts: Vec<Arc<View>>) -> io::Result<View> {
    folders.push(path.clone());
    let stamp = |folder: PathBuf| -> io::Result<Folder> {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555))?;
        let made = fs::metadata(&folder)?.modified()?;
        let entries = entries(&folder).unwrap_or(0);
        Ok(Folder { path: folder, made, entries })
    };
    let folders = folders.into_par_iter().with_min_len(16).map(stamp).collect::<io::Result<_>>()?;
    Ok(View { path, links: Default::default(), folders, parts })
}

impl Drop for Workshop {
    fn drop(&mut self) {
        remove(self.root.path());
    }
}

/// Removes a folder, its parts side by side: a table's inputs are thousands of folders.
fn remove(folder: &Path) {
    // A folder that cannot be written cannot be emptied either.
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    let entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.par_iter().with_min_len(16).for_each(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => remove(&entry.path()),
        _ => {
            let _ = fs::remove_file(entry.path());
        }
    });
    let _ = fs::remove_dir(folder);
}

/// The files of the declared outputs, relative to the directory.
pub(crate) fn outputs(dir: &Path, layout: &Layout) -> Result<Vec<String>, Failure> {
    let mut all = BTreeSet::new();
    for output in &layout.outputs {
        let path = dir.join(output.trim_end_matches('/'));
        let kind = fs::symlink_metadata(&path).map(|meta| meta.file_type());
        match kind {
            Ok(kind) if kind.is_dir() && output.ends_with('/') => {
                let files = Store::files_below(&path).map_err(|e| Failure::new(e.to_string()))?;
                all.extend(files.into_iter().map(|file| format!("{output}{file}")));
            }
            Ok(kind) if kind.is_file() && !output.ends_with('/') => {
                all.insert(output.clone());
            }
            Ok(kind) => {
                let what = if kind.is_symlink() {
                    "a link"
                } else if kind.is_dir() {
                    "a folder"
                } else if kind.is_file() {
                    "no folder"
                } else {
                    "neither a file nor a folder"
                };
                let hint = if kind.is_dir() { "; write `/` behind a folder's name" } else { "" };
                return Err(Failure::new(format!("its output `{output}` is {what}{hint}")));
            }
            Err(_) => return Err(Failure::new(format!("it ended without its output `{output}`"))),
        }
    }
    let all: Vec<String> = all.into_iter().collect();
    check_names(&all)?;
    Ok(all)
}

/// Refuses outputs whose names could steer a terminal or stand for two lines.
pub(crate) fn check_names(files: &[String]) -> Result<(), Failure> {
    match files.iter().find(|name| name.chars().any(char::is_control)) {
        Some(bad) => Err(Failure::new(format!("it left a file whose name has control characters: {bad:?}"))),
        None => Ok(()),
    }
}

/// Puts the outputs of a directory into the store.
pub(crate) fn take_in(store: &Store, dir: &Path, files: &[String]) -> Result<Vec<Output>, Failure> {
    store.take_in(dir, files).map_err(|e| Failure::new(e.to_string()))
}
