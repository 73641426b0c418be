//! `siteline weights`: from a server that speaks as the Hub does, and from files that were brought along.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::space::{Said, Space};

const COMMIT: &str = "57c216476eefef5ab752ec549e440a49ae4ae5f3";
const FILE: &str = "timm/vit_base_patch16_clip_224.openai/resolve/";

/// A server on loopback, with one file under every revision.
struct Hub {
    address: String,
    content: Arc<Mutex<Vec<u8>>>,
    /// What it says that the file's SHA-256 is; its true one if nothing is set.
    claims: Arc<Mutex<Option<String>>>,
    /// How many bytes it sends before it hangs up, once.
    breaks_after: Arc<Mutex<Option<usize>>>,
    sent: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            content: Arc::new(Mutex::new(content)),
            claims: Arc::default(),
            breaks_after: Arc::default(),
            sent: Arc::default(),
            asked: Arc::default(),
        };
        let shared =
            (hub.content.clone(), hub.claims.clone(), hub.breaks_after.clone(), hub.sent.clone(), hub.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, claims, breaks_after, sent, asked) = &shared;
                let content = content.lock().unwrap().clone();
                let claims = claims.lock().unwrap().clone();
                let limit = breaks_after.lock().unwrap().as_mut().copied();
                let (path, count) = answer(stream, &content, claims, limit);
                if count > 1 {
                    sent.fetch_add(count, Ordering::SeqCst);
                    *breaks_after.lock().unwrap() = None;
                }
                asked.lock().unwrap().push(path);
            }
        });
        hub
    }

    fn siteline(&self, space: &Space, arguments: &[&str]) -> Said {
        let mut command = space.command(arguments);
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", space.path("home"));
        Said::from(command.output().unwrap())
    }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers one request for a range of the file. Returns the path and how many bytes of the file were sent.
fn answer(mut stream: TcpStream, content: &[u8], claims: Option<String>, limit: Option<usize>) -> (String, usize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)).unwrap_or_default();
    let range = lines.by_ref().take_while(|line| !line.is_empty()).find_map(|line| {
        let line = line.to_ascii_lowercase();
        let (from, to) = line.strip_prefix("range: bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
    });
    if !path.contains(FILE) {
        let _ = write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return (path, 0);
    }
    let (from, to) = range.unwrap_or((0, None));
    let part = &content[from.min(content.len())..to.map_or(content.len(), |to| to + 1).min(content.len())];
    let etag = claims.unwrap_or_else(|| sha256(content));
    let last = from + part.len().saturating_sub(1);
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nx-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\nContent-Range: bytes {from}-{last}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len(),
        part.len()
    );
    let sent = limit.filter(|_| part.len() > 1).map_or(part.len(), |limit| limit.min(part.len()));
    let _ = stream.write_all(&part[..sent]);
    (path, sent)
}

fn phantom_clip() -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("weights/phantom-clip.safetensors")).unwrap()
}

fn empty() -> Space {
    Space::of_commands("stages: {}")
}

#[test]
fn weights_are_fetched_pinned_and_traced() {
    let hub = Hub::start(phantom_clip());
    let space = Space::fresh();
    let said = hub.siteline(&space, &["weights", "fetch", "vit-b-16"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout.contains("ViT of 4 blocks, 12 pixels a patch, 96 pixels, 128 dimensions"), "{}", said.stdout);
    assert!(said.stdout.contains("backbones: {ViT-B-16: {weights: "), "{}", said.stdout);
    assert_eq!(std::fs::read(space.path("weights/ViT-B-16.safetensors")).unwrap(), phantom_clip());
    assert!(!space.path("weights/.fetching").exists(), "nothing but the file and its record is left");
    // What is there is not fetched again.
    let before = hub.asked.lock().unwrap().len();
    let again = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert_eq!((again.code, hub.asked.lock().unwrap().len()), (0, before), "{}", again.stderr);
    // What was removed is fetched from the pinned commit, and must be the same.
    std::fs::remove_file(space.path("weights/ViT-B-16.safetensors")).unwrap();
    assert_eq!(hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]).code, 0);
    assert!(hub.asked.lock().unwrap().last().unwrap().contains(&format!("/resolve/{COMMIT}/")));
    std::fs::remove_file(space.path("weights/ViT-B-16.safetensors")).unwrap();
    let mut other = phantom_clip();
    let end = other.len() - 1;
    other[end] ^= 1;
    *hub.content.lock().unwrap() = other;
    let refused = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("what came is not what it should be: its SHA-256 is"), "{}", refused.stderr);
    assert!(!space.path("weights/ViT-B-16.safetensors").exists());
    // A name stands for one source, a pin that cannot be read for none, and a file without one is left alone.
    let other = hub.siteline(&space, &["weights", "fetch", "timm/other", "--as", "ViT-B-16"]);
    assert!(other.code == 1 && other.stderr.contains("is pinned to another source"), "{}", other.stderr);
    let record = space.read("weights/ViT-B-16.safetensors.origin.json");
    space.write("weights/ViT-B-16.safetensors.origin.json", "<<<<<<<");
    let damaged = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert!(damaged.code == 1 && damaged.stderr.contains("cannot be read"), "{}", damaged.stderr);
    space.write("weights/ViT-B-16.safetensors.origin.json", record);
    space.write("weights/RN50.safetensors", "mine");
    let mine = hub.siteline(&space, &["weights", "fetch", "RN50"]);
    assert!(mine.code == 1 && mine.stderr.contains("nothing says where it came from"), "{}", mine.stderr);
    assert_eq!(space.read("weights/RN50.safetensors"), "mine");
    // Numbers that were made with it say where it came from.
    *hub.content.lock().unwrap() = phantom_clip();
    assert_eq!(hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]).code, 0);
    space.edit("siteline.yaml", "clip.safetensors", "weights/ViT-B-16.safetensors");
    assert_eq!(space.run(&["run", "--plain", "--only", "features[site=A]"]).code, 0);
    let traced = space.run(&["trace", "features[site=A,backbone=tiny]"]).stdout;
    let from = "from   open_clip_model.safetensors of timm/vit_base_patch16_clip_224.openai at 57c216476eef; SHA-256";
    assert!(traced.contains(from), "{traced}");
}

#[test]
fn a_fetch_that_was_cut_off_goes_on_and_lies_are_noticed() {
    let hub = Hub::start(phantom_clip());
    let space = empty();
    *hub.breaks_after.lock().unwrap() = Some(1_000_000);
    let said = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(hub.sent.load(Ordering::SeqCst), phantom_clip().len(), "no byte was sent twice");
    let space = empty();
    *hub.claims.lock().unwrap() = Some("0".repeat(64));
    let lied = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert_eq!(lied.code, 1);
    assert!(lied.stderr.contains("what came is not what it should be"), "{}", lied.stderr);
    assert!(std::fs::read_dir(space.path("weights")).unwrap().next().is_none(), "nothing was kept");
}

#[test]
fn what_cannot_be_fetched_or_is_no_clip_is_said() {
    let hub = Hub::start(b"no weights".to_vec());
    let space = empty();
    let unknown = hub.siteline(&space, &["weights", "fetch", "ViT-B-61"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("did you mean `ViT-B-16`?"), "{}", unknown.stderr);
    let missing = hub.siteline(&space, &["weights", "fetch", "somebody/else"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("failed to fetch model.safetensors of somebody/else at main"),
        "{}",
        missing.stderr
    );
    let nothing = hub.siteline(&space, &["weights", "fetch", "ViT-B-16"]);
    assert_eq!(nothing.code, 1);
    assert!(nothing.stderr.contains("not a whole safetensors file"), "{}", nothing.stderr);
    assert!(!space.path("weights/ViT-B-16.safetensors").exists());
}

#[test]
fn files_that_were_brought_along_are_checked_and_copied() {
    let space = empty();
    let golden = |name: &str| format!("{}/tests/golden/clip/{name}", env!("CARGO_MANIFEST_DIR"));
    let added = space.run(&["weights", "add", &golden("torchscript.pt"), "--as", "archive"]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert!(space.path("weights/archive.pt").exists() && space.path("weights/archive.pt.origin.json").exists());
    let again = space.run(&["weights", "add", &golden("torchscript.pt"), "--as", "archive"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let other = space.run(&["weights", "add", &golden("openai.safetensors"), "--as", "archive"]);
    assert_eq!(other.code, 0, "another ending is another file: {}", other.stderr);
    // A pickle that could run anything is not read, and not added.
    let pickle = space.run(&["weights", "add", &golden("plain.pt")]);
    assert_eq!(pickle.code, 1);
    assert!(pickle.stderr.contains("its pickle could run anything and is not read"), "{}", pickle.stderr);
    assert!(!space.path("weights/plain.pt").exists());
    let climbs = space.run(&["weights", "add", &golden("openai.safetensors"), "--as", "../out"]);
    assert_eq!(climbs.code, 2, "{}", climbs.stderr);
    let list = space.run(&["weights", "list"]);
    assert_eq!(list.stdout.lines().filter(|line| line.contains("timm/")).count(), 5, "{}", list.stdout);
}
