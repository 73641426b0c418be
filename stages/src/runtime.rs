//! libtorch in this process: the CUDA library if it is there, the number of threads, versions for the record.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Opens libtorch's CUDA library if it lies beside libtorch and a GPU may be used. One program then serves both.
///
/// It has to happen before libtorch is first asked about CUDA, as a "no" is remembered.
pub fn open_cuda() {
    let Some(path) = cuda_library() else { return };
    // SAFETY: the library is libtorch's own; its initialisers only register its kernels, and it is never closed.
    #[expect(unsafe_code, reason = "opening a library runs its initialisers")]
    let opened = unsafe {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL)
    };
    match opened {
        Ok(library) => std::mem::forget(library),
        Err(e) => tracing::warn!("CUDA is not used: {e}"),
    }
}

/// `libtorch_cuda.so` beside the libtorch that this process has mapped.
fn cuda_library() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mapped =
        maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))));
    let torch = mapped.into_iter().find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?;
    Some(torch.with_file_name("libtorch_cuda.so")).filter(|path| path.exists())
}

/// Keeps memory that tensors gave back: a training asks for the same sizes in every step, and pages that went back to the kernel come
/// again one by one, each filled with zeros first. One arena, as those of other threads are too small for tensors.
pub fn keep_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: settings of the allocator; one that it does not know changes nothing.
    #[expect(unsafe_code, reason = "settings of glibc's allocator")]
    unsafe {
        // The largest tensors too, which would otherwise be mapped anew each time whatever the threshold.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives it back, between stages.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches no memory that is in use.
    #[expect(unsafe_code, reason = "glibc's allocator")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sets the number of threads of libtorch's operations.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(threads.max(1) as i32);
}

/// Where and with what a stage runs, for its record.
pub fn environment(threads: usize) -> BTreeMap<String, String> {
    let device = if tch::Cuda::is_available() { "cuda" } else { "cpu" };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    BTreeMap::from([
        ("siteline".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("libtorch".to_owned(), env!("SITELINE_LIBTORCH").to_owned()),
        ("device".to_owned(), device.to_owned()),
        ("threads".to_owned(), threads.to_string()),
        ("host".to_owned(), host.trim().to_owned()),
        ("kernel".to_owned(), kernel.trim().to_owned()),
        ("cpu".to_owned(), cpu.to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
    ])
}
