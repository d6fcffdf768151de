//! The one system call of the tests that has no safe wrapper.
#![allow(
    unsafe_code,
    reason = "rustix cannot know that no descriptor table is unshared"
)]

use rustix::thread::UnshareFlags;

/// Gives the calling thread, which is used for nothing else, a root and working directory
/// of its own: only such a thread may enter a mount namespace.
pub(super) fn unshare_root() -> std::io::Result<()> {
    // SAFETY: only CLONE_FILES can break descriptors of other threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?)
}
