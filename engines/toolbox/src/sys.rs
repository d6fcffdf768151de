//! The few C functions that std has no stable name for on WASI, and their native twins.

use std::io;

/// The bytes of one of the process's own streams, without a buffer: what is not read
/// stays for the commands that share it.
pub(crate) struct Own(pub(crate) i32);

impl io::Read for Own {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        imp::read(self.0, buffer)
    }
}

impl io::Write for Own {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        imp::write(self.0, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) use imp::{is_terminal, set_times, symlink};

#[cfg(target_arch = "wasm32")]
mod imp {
    use std::ffi::CString;
    use std::io;

    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i32,
    }

    #[allow(improper_ctypes)]
    mod c {
        extern "C" {
            pub(super) fn read(fd: i32, buffer: *mut u8, length: usize) -> isize;
            pub(super) fn write(fd: i32, buffer: *const u8, length: usize) -> isize;
            pub(super) fn isatty(fd: i32) -> i32;
            pub(super) fn symlink(target: *const i8, link: *const i8) -> i32;
            pub(super) fn utimensat(
                fd: i32,
                path: *const i8,
                times: *const super::Timespec,
                flags: i32,
            ) -> i32;
        }
    }

    fn length(n: isize) -> io::Result<usize> {
        if n < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(n as usize)
        }
    }

    pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: libc writes at most `length` bytes into the buffer.
        length(unsafe { c::read(fd, buffer.as_mut_ptr(), buffer.len()) })
    }

    pub(crate) fn write(fd: i32, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: libc reads at most `length` bytes of the buffer.
        length(unsafe { c::write(fd, bytes.as_ptr(), bytes.len()) })
    }

    pub(crate) fn is_terminal(fd: i32) -> bool {
        // SAFETY: a number.
        unsafe { c::isatty(fd) == 1 }
    }

    fn c_string(text: &str) -> io::Result<CString> {
        CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    }

    pub(crate) fn symlink(target: &str, link: &str) -> io::Result<()> {
        let (target, link) = (c_string(target)?, c_string(link)?);
        // SAFETY: both end in NUL and live over the call.
        length(unsafe { c::symlink(target.as_ptr().cast(), link.as_ptr().cast()) } as isize)
            .map(drop)
    }

    /// Sets access and modification time; whole seconds since 1970, and nanoseconds.
    pub(crate) fn set_times(path: &str, seconds: i64, nanoseconds: u32) -> io::Result<()> {
        const AT_FDCWD: i32 = -2; // of wasi-libc
        let path = c_string(path)?;
        let time = || Timespec {
            seconds,
            nanoseconds: nanoseconds as i32,
        };
        let times = [time(), time()];
        // SAFETY: the path ends in NUL, times are two, as utimensat wants.
        length(unsafe { c::utimensat(AT_FDCWD, path.as_ptr().cast(), times.as_ptr(), 0) } as isize)
            .map(drop)
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[cfg_attr(
    not(target_arch = "wasm32"),
    allow(
        clippy::incompatible_msrv,
        reason = "never compiled by the old compiler that makes the module"
    )
)]
mod imp {
    use std::io::{self, IsTerminal, Read, Write};
    use std::os::fd::AsFd;

    fn own(fd: i32) -> io::Result<std::fs::File> {
        let copy = match fd {
            0 => io::stdin().as_fd().try_clone_to_owned(),
            1 => io::stdout().as_fd().try_clone_to_owned(),
            _ => io::stderr().as_fd().try_clone_to_owned(),
        };
        copy.map(std::fs::File::from)
    }

    pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
        own(fd)?.read(buffer)
    }

    pub(crate) fn write(fd: i32, bytes: &[u8]) -> io::Result<usize> {
        own(fd)?.write(bytes)
    }

    pub(crate) fn is_terminal(fd: i32) -> bool {
        match fd {
            0 => io::stdin().is_terminal(),
            1 => io::stdout().is_terminal(),
            _ => io::stderr().is_terminal(),
        }
    }

    pub(crate) fn symlink(target: &str, link: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    pub(crate) fn set_times(path: &str, seconds: i64, nanoseconds: u32) -> io::Result<()> {
        let offset = std::time::Duration::new(seconds.unsigned_abs(), nanoseconds);
        let time = if seconds < 0 {
            std::time::UNIX_EPOCH - offset
        } else {
            std::time::UNIX_EPOCH + offset
        };
        let times = std::fs::FileTimes::new()
            .set_accessed(time)
            .set_modified(time);
        std::fs::File::open(path)?.set_times(times)
    }
}
