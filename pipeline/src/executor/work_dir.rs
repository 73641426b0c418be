//! The private working directory of a command: inputs as links, parameters as a file, outputs taken from declared places only.
//!
//! ```text
//! dir/                                    where it runs
//! dir/inputs/NAME                         a link to the folder of what the instance reads by NAME, whoever else reads it
//! dir/inputs/NAME/FILE                    its files
//! dir/inputs/NAME/AXIS=VALUE,.../FILE     the same where several are gathered
//! dir/params.json                         `with`, after substitution
//! dir/PATH/OF/SCRIPT, dir/PATH/OF/DATA    the project's files that the stage lists
//! inputs/NAME                             the folder that is linked to, where few read the same
//! ```
//!
//! Thousands of instances read the same artifacts: a folder of links to their objects is made once in a run (a [`View`]) for all
//! that find the same in it. File systems are slow at making and removing inodes, folders most of all: a directory is used again
//! for an instance that finds the same folders, emptied of everything else. One with many folders, such as a table's, waits in
//! the store for the next run of its instance.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use siteline_cache::{Digest, Output, Store, StoreError, removal};

use self::view::{Root, View};

mod view;

/// What a command finds and leaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// The instance's name.
    pub(crate) instance: String,
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
    /// Whether many others read it as well.
    pub(crate) shared: bool,
    /// The key of the execution that made it.
    pub(crate) key: Digest,
    /// Its files.
    pub(crate) files: Vec<Output>,
}

impl Input {
    /// The folder that it gets where several are gathered.
    fn shown_as(&self) -> &str {
        self.gathered.as_deref().unwrap_or("all")
    }
}

/// Whether so many read the same that it is worth a view.
fn is_viewed(group: &[Input]) -> bool {
    group.iter().all(|input| input.shared)
}

/// Whether an input is one artifact, whose files lie right in the input's folder.
fn is_one(group: &[Input]) -> bool {
    matches!(group, [one] if one.gathered.is_none())
}

/// More than one step of the clock that file systems stamp with.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// Folders by their paths in a working directory, each behind the one that it is in.
type Folders = BTreeSet<String>;

impl Layout {
    /// What is read by each input.
    fn groups(&self) -> impl Iterator<Item = &[Input]> {
        self.inputs.chunk_by(|one, next| one.name == next.name)
    }

    /// The folders that a command finds. Where many read the same, an input's folder is a view.
    fn folders(&self) -> Folders {
        let mut folders = Folders::from([DIR.to_owned()]);
        for group in self.groups() {
            folders.insert(format!("{DIR}/{INPUTS}"));
            if is_viewed(group) {
                continue;
            }
            let place = format!("{INPUTS}/{}", group[0].name);
            if !is_one(group) {
                folders.extend(group.iter().map(|input| format!("{place}/{}", input.shown_as())));
            }
            folders.extend([INPUTS.to_owned(), place]);
        }
        let data = self.code.iter().chain(&self.files).map(|(name, _)| name);
        // A folder is there already, and so is the folder of a file: `>results/a.txt` just works.
        for path in data.chain(&self.outputs) {
            folders.extend(path.match_indices('/').map(|(end, _)| format!("{DIR}/{}", &path[..end])));
        }
        folders
    }
}

/// Where the command runs.
const DIR: &str = "dir";
/// There the links, and beside it the folders that they lead to: outside of what a command in a sandbox may write to.
const INPUTS: &str = "inputs";
/// From so many folders on a directory is not made and removed lightly.
const MANY: usize = 64;

/// What a view shows: artifacts, each with what tells it from the others.
type ViewId = Vec<(String, Digest)>;

/// Where the commands of a run work.
pub(crate) struct Workshop {
    pub(crate) store: Arc<Store>,
    root: Root,
    made: AtomicUsize,
    /// The mode of a folder that was just made.
    mode: u32,
    /// Directories to use again, with the folders in them, longest unused first.
    free: Mutex<VecDeque<(Folders, PathBuf)>>,
    views: Mutex<HashMap<ViewId, Arc<View>>>,
    /// For each input's name a symbolic link as a command finds it where few read the same: a hard link to it costs no inode.
    own_links: Mutex<HashMap<String, PathBuf>>,
}

/// A working directory in use, and the views that it shows.
#[derive(Debug)]
pub(crate) struct WorkDir {
    /// Where the command runs.
    pub(crate) path: PathBuf,
    /// The folder around it.
    base: PathBuf,
    instance: String,
    folders: Folders,
    views: Vec<Arc<View>>,
}

impl Workshop {
    pub(crate) fn new(store: Arc<Store>) -> Result<Self, StoreError> {
        let folder = store.scratch()?;
        let path = folder.path().to_owned();
        let unusable = |source| StoreError::Io { action: "write", path, source };
        let probe = folder.path().join("probe");
        let mode = fs::create_dir(&probe).and_then(|()| fs::metadata(&probe)).map(|meta| meta.mode());
        let (root, mode) = Root::open(folder).and_then(|root| Ok((root, mode?))).map_err(unusable)?;
        Ok(Self {
            store,
            root,
            mode,
            made: AtomicUsize::new(0),
            free: Mutex::default(),
            views: Mutex::default(),
            own_links: Mutex::default(),
        })
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

    fn free(&self) -> std::sync::MutexGuard<'_, VecDeque<(Folders, PathBuf)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory with these folders and nothing else in it.
    fn with_folders(&self, instance: &str, folders: &Folders) -> io::Result<PathBuf> {
        if folders.len() >= MANY {
            return self.with_many_folders(instance, folders);
        }
        let mut free = self.free();
        if let Some(found) = free.iter().rposition(|(there, _)| there == folders)
            && let Some((_, path)) = free.remove(found)
        {
            return Ok(path);
        }
        drop(free);
        let path = self.fresh("work")?;
        folders.iter().try_for_each(|folder| fs::create_dir_all(path.join(folder)))?;
        Ok(path)
    }

    /// The same where it is worth looking for what an earlier run of the instance left.
    fn with_many_folders(&self, instance: &str, folders: &Folders) -> io::Result<PathBuf> {
        let mut path = self.fresh("work")?;
        let idle = self.idle(instance);
        // Of a store that several use, a folder may be somebody else's.
        let own = fs::symlink_metadata(&idle).is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw());
        // Another run may be quicker.
        if own && fs::rename(&idle, &path).is_ok() {
            match self.empty(&path, folders) {
                Ok(true) => return Ok(path),
                // What cannot be used goes with the workshop.
                _ => path = self.fresh("work")?,
            }
        }
        let ordered: Vec<&String> = folders.iter().collect();
        ordered.par_iter().with_min_len(MANY).try_for_each(|folder| fs::create_dir_all(path.join(folder)))?;
        Ok(path)
    }

    fn idle(&self, instance: &str) -> PathBuf {
        self.store.idle(&Digest::of_bytes(instance.as_bytes()).to_string())
    }

    /// A directory with everything that a command finds.
    pub(crate) fn set_up(&self, layout: &Layout) -> io::Result<WorkDir> {
        let folders = layout.folders();
        let base = self.with_folders(&layout.instance, &folders)?;
        let path = base.join(DIR);
        let mut dir = WorkDir { path, base, instance: layout.instance.clone(), folders, views: Vec::new() };
        self.link_inputs(&mut dir, layout)?;
        // Code first: what is listed as data as well is there already, and copying onto a link would write to the project.
        for (name, file) in &layout.code {
            fs::copy(file, dir.path.join(name))?;
        }
        for (name, file) in &layout.files {
            match symlink(file, dir.path.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        if let Some(params) = &layout.params {
            let path = dir.path.join("params.json");
            // The project may have a file of that name, which is linked here.
            let _ = fs::remove_file(&path);
            fs::write(path, params)?;
        }
        Ok(dir)
    }

    fn link_inputs(&self, dir: &mut WorkDir, layout: &Layout) -> io::Result<()> {
        for group in layout.groups() {
            let name = &group[0].name;
            let place = dir.path.join(INPUTS).join(name);
            if is_viewed(group) {
                let view = self.view(group)?;
                view.show(&place)?;
                dir.views.push(view);
                continue;
            }
            let own = dir.base.join(INPUTS).join(name);
            match is_one(group) {
                true => drop(self.link_files(&group[0].files, &own)?),
                // A table reads thousands.
                false => group
                    .par_iter()
                    .with_min_len(16)
                    .try_for_each(|input| self.link_files(&input.files, &own.join(input.shown_as())).map(|_| ()))?,
            }
            let link = self.own_link(name)?;
            fs::hard_link(&link, &place).or_else(|_| symlink(fs::read_link(&link)?, &place))?;
        }
        Ok(())
    }

    fn own_link(&self, name: &str) -> io::Result<PathBuf> {
        let mut links = self.own_links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(name) {
            return Ok(link.clone());
        }
        let link = self.root.path().join(format!("own{}", links.len()));
        symlink(Path::new("../..").join(INPUTS).join(name), &link)?;
        links.insert(name.to_owned(), link.clone());
        Ok(link)
    }

    /// The view of what is read by one input.
    fn view(&self, group: &[Input]) -> io::Result<Arc<View>> {
        let id = |input: &Input| (input.gathered.clone().unwrap_or_default(), input.key);
        self.known(group.iter().map(id).collect(), || {
            let path = self.fresh("view")?;
            let mut folders = Vec::new();
            for input in group {
                let place = if is_one(group) { path.clone() } else { path.join(input.shown_as()) };
                if !is_one(group) {
                    fs::create_dir(&place)?;
                    folders.push(place.clone());
                }
                folders.extend(self.link_files(&input.files, &place)?);
            }
            self.root.seal(path, folders)
        })
    }

    /// Links to an artifact's objects, in a folder that is there. Returns the folders below it that were made for them.
    fn link_files(&self, files: &[Output], path: &Path) -> io::Result<Vec<PathBuf>> {
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
        if !dir.views.iter().all(|view| view.is_untouched(&self.root, started)) {
            // Whoever reads the same next gets views of its own.
            self.views.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return Some(
                "its `inputs` were written to while it ran, by itself or by another command that reads the same"
                    .to_owned(),
            );
        }
        let objects = layout.inputs.iter().flat_map(|input| &input.files);
        objects.into_iter().find_map(|file| {
            let untouched = self.store.object_modified(&file.digest).is_ok_and(|time| time + CLOCK_STEP < started);
            let damaged = !untouched && self.store.check_object(&file.digest).map_or(true, |checked| checked.is_err());
            damaged.then(|| {
                format!("its input `{}` was written to while it ran, by itself or by another command that reads it; it is set aside and made anew when it is next needed: a command writes to its own directory alone", file.path)
            })
        })
    }

    /// Empties a directory for the next command that finds the same folders.
    pub(crate) fn clear(&self, dir: WorkDir) {
        /// Where each instance finds other folders, directories would pile up.
        const MOST: usize = 64;
        let emptied = self.empty(&dir.base, &dir.folders).is_ok_and(|all| all);
        let surplus = match (emptied, dir.folders.len()) {
            (false, _) => Some(dir.base),
            (true, MANY..) => self.leave_idle(&dir).err().map(|_| dir.base),
            (true, _) => {
                let mut free = self.free();
                free.push_back((dir.folders, dir.base));
                (free.len() > MOST).then(|| free.pop_front()).flatten().map(|(_, path)| path)
            }
        };
        if let Some(path) = surplus {
            let _ = removal::remove_folder(&path);
        }
    }

    /// Removes everything in a directory but these folders. Whether they are all there, as they were made.
    fn empty(&self, dir: &Path, folders: &Folders) -> io::Result<bool> {
        // A link in its place would lead out of the store.
        Ok(fs::symlink_metadata(dir)?.mode() == self.mode && self.empty_below(dir, "", folders)? == folders.len())
    }

    fn empty_below(&self, folder: &Path, name: &str, folders: &Folders) -> io::Result<usize> {
        let (mut kept, mut rest) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_str().map(|inner| match name {
                "" => inner.to_owned(),
                outer => format!("{outer}/{inner}"),
            });
            // The command may have changed who may do what in a folder.
            match name.filter(|name| folders.contains(name)) {
                Some(name) if entry.metadata()?.mode() == self.mode => kept.push((entry.path(), name)),
                _ => rest.push(entry.path()),
            }
        }
        removal::remove_all(&rest)?;
        let empty = |(path, name): &(PathBuf, String)| self.empty_below(path, name, folders);
        let below: usize = match kept.len() {
            0..MANY => kept.iter().map(empty).sum::<io::Result<_>>()?,
            _ => kept.par_iter().with_min_len(16).map(empty).sum::<io::Result<_>>()?,
        };
        Ok(kept.len() + below)
    }

    /// Puts an emptied directory where a later run finds it. One that is there already stays.
    fn leave_idle(&self, dir: &WorkDir) -> io::Result<()> {
        /// Each has at least as many folders as are many.
        const MOST: usize = 32;
        let idle = self.idle(&dir.instance);
        let all = idle.parent().ok_or(io::ErrorKind::NotFound)?;
        fs::create_dir_all(all)?;
        if fs::read_dir(all)?.take(MOST).count() == MOST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        fs::rename(&dir.base, idle)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = removal::remove_folder(self.root.path());
    }
}
