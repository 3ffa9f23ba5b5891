//! Lease-based locks for shared file systems without cross-machine flock.
//!
//! Each acquisition creates a file of the next number, `.lease-EPOCH`, which only one process can create. Its holder
//! rewrites it several times per lease time. A process that waits and sees the same text for a whole lease time, by its own
//! monotonic clock, creates the next one: no clocks of two machines are compared. The holder checks before each change that
//! no higher number exists, so that one that wakes after such a takeover changes nothing.
//!
//! A holder may be suspended between that check and its change. Where a change is a rename ([`crate::atomic`]), the check
//! belongs between the write of the temporary file and the rename: who takes over removes temporary files
//! ([`crate::atomic::recover`]) before it does anything else, and the late rename finds nothing. Small files that are
//! checked only before they are written (logs, run.json, results.json) keep that moment.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::FormatError;

/// The prefix of the files' names.
const PREFIX: &str = ".lease-";

/// How the text of a lease begins that its holder gave up.
const RELEASED: &str = "released by ";

/// How often a holder writes per lease time: several times, since a shared file system may pause.
pub(crate) const HEARTBEATS_PER_LEASE: u32 = 6;

/// A lease that this process holds until it is dropped, unless another process took over.
#[derive(Debug)]
pub(crate) struct Lease {
    folder: PathBuf,
    epoch: u64,
    owner: String,
    heartbeat: Arc<Heartbeat>,
    thread: Option<JoinHandle<()>>,
    /// Whether it is to end as if its holder had been killed.
    abandoned: bool,
}

/// What a waiting process saw of the current lease.
#[derive(Debug, Default)]
pub(crate) struct LeaseWatch {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    epoch: u64,
    text: String,
    since: Instant,
}

/// Tells the thread that rewrites the file to end.
#[derive(Debug, Default)]
struct Heartbeat {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl LeaseWatch {
    /// Whether the text of the lease has stood unchanged for `expires`.
    fn is_expired(&mut self, epoch: u64, text: String, expires: Duration) -> bool {
        match &self.seen {
            Some(seen) if seen.epoch == epoch && seen.text == text => seen.since.elapsed() >= expires,
            _ => {
                self.seen = Some(Seen { epoch, text, since: Instant::now() });
                false
            }
        }
    }
}

impl Lease {
    /// Takes the lease of `folder` if it is free or its holder was silent for `expires`, as far as `watch` has seen; with
    /// whether that holder did not release it. `None` while another process holds it.
    pub(crate) fn try_acquire(
        folder: &Path,
        expires: Duration,
        watch: &mut LeaseWatch,
    ) -> Result<Option<(Self, bool)>, FormatError> {
        let last = last_epoch(folder)?;
        let text = read_lease(&path(folder, last))?;
        let after_crash = last > 0 && !text.starts_with(RELEASED);
        if after_crash && !watch.is_expired(last, text, expires) {
            return Ok(None);
        }
        let epoch = last + 1;
        let own = path(folder, epoch);
        let mut file = match File::create_new(&own) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(FormatError::io(&own, "created, so its folder cannot be changed")(error)),
        };
        let owner = owner();
        write_text(&mut file, &heartbeat_text(&owner, 0)).map_err(FormatError::io(&own, "written"))?;
        // The listing may have been an old one, from before others came and went.
        if last_epoch(folder)? > epoch {
            fs::remove_file(&own).map_err(FormatError::io(&own, "removed"))?;
            return Ok(None);
        }
        remove_before(folder, last);
        let heartbeat = Arc::new(Heartbeat::default());
        let thread = std::thread::spawn({
            let heartbeat = Arc::clone(&heartbeat);
            let owner = owner.clone();
            move || heartbeat.run(file, &owner, expires / HEARTBEATS_PER_LEASE)
        });
        let lease = Self { folder: folder.to_owned(), epoch, owner, heartbeat, thread: Some(thread), abandoned: false };
        Ok(Some((lease, after_crash)))
    }

    /// Ends this lease, once it is dropped, as if its holder had been killed.
    pub(crate) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Checks that no other process has taken over.
    pub(crate) fn ensure_held(&self) -> Result<(), FormatError> {
        let last = last_epoch(&self.folder)?;
        if last == self.epoch {
            return Ok(());
        }
        let holder = fs::read_to_string(path(&self.folder, last)).unwrap_or_default();
        let holder = holder.trim_start_matches(RELEASED).split(", ").next().unwrap_or_default().to_owned();
        Err(FormatError::LeaseLost { folder: self.folder.clone(), holder })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.heartbeat.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.heartbeat.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, the lease expires.
            let _ = thread.join();
        }
        if !self.abandoned && self.ensure_held().is_ok() {
            let text = format!("{RELEASED}{}\n", self.owner);
            // If this fails, the lease expires.
            let _ = File::create(path(&self.folder, self.epoch)).and_then(|mut file| write_text(&mut file, &text));
        }
    }
}

impl Heartbeat {
    /// Rewrites the file until it is told to end.
    fn run(&self, mut file: File, owner: &str, pause: Duration) {
        let mut count = 0;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = self.changed.wait_timeout(ended, pause).unwrap_or_else(PoisonError::into_inner).0;
            count += 1;
            // A write that fails is repeated with the next beat.
            let _ = file.seek(SeekFrom::Start(0)).and_then(|_| write_text(&mut file, &heartbeat_text(owner, count)));
        }
    }
}

/// The text of a holder's file.
fn heartbeat_text(owner: &str, count: u64) -> String {
    format!("{owner}, beat {count}\n")
}

fn write_text(file: &mut File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Who holds a lease, for people and unlike any other.
fn owner() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("process {} on {}, lease {started:x}", std::process::id(), host.trim())
}

/// The text of a lease; empty if there is none, since a new holder may have removed it after it was listed. A lease that
/// cannot be read is an error: as an empty one it would be taken from a live holder.
fn read_lease(path: &Path) -> Result<String, FormatError> {
    match fs::read_to_string(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::StaleNetworkFileHandle) => {
            Ok(String::new())
        }
        text => text.map_err(FormatError::io(path, "read")),
    }
}

fn path(folder: &Path, epoch: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{epoch}"))
}

/// The epochs of all leases of a folder.
fn epochs(folder: &Path) -> Result<Vec<u64>, FormatError> {
    let names = fs::read_dir(folder).map_err(FormatError::io(folder, "read"))?;
    let epoch = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok();
    Ok(names.filter_map(epoch).collect())
}

/// The epoch of the current lease; 0 before the first.
fn last_epoch(folder: &Path) -> Result<u64, FormatError> {
    Ok(epochs(folder)?.into_iter().max().unwrap_or(0))
}

/// Removes leases before the epoch `last`, which stays: a process with an old listing must find its number taken.
fn remove_before(folder: &Path, last: u64) {
    // What cannot be removed is in nobody's way.
    for epoch in epochs(folder).into_iter().flatten().filter(|epoch| *epoch < last) {
        let _ = fs::remove_file(path(folder, epoch));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    fn acquire(folder: &Path, expires: Duration, watch: &mut LeaseWatch) -> Option<(Lease, bool)> {
        Lease::try_acquire(folder, expires, watch).unwrap()
    }

    #[test]
    fn a_holder_that_writes_keeps_its_lease() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = LeaseWatch::default();
        let (held, after_crash) = acquire(folder.path(), SHORT, &mut LeaseWatch::default()).unwrap();
        assert!(!after_crash);
        let until = Instant::now() + 3 * SHORT;
        while Instant::now() < until {
            assert!(acquire(folder.path(), SHORT, &mut watch).is_none());
            std::thread::sleep(SHORT / 20);
        }
        held.ensure_held().unwrap();
        drop(held);
        assert!(!acquire(folder.path(), SHORT, &mut watch).unwrap().1, "a released lease is free at once");
    }

    #[test]
    fn a_silent_holder_is_replaced_and_then_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // Its holder beats once an hour: to others it is silent.
        let (silent, _) = acquire(folder.path(), Duration::from_secs(3600), &mut LeaseWatch::default()).unwrap();
        let mut watch = LeaseWatch::default();
        assert!(acquire(folder.path(), SHORT, &mut watch).is_none(), "nobody has watched it yet");
        std::thread::sleep(SHORT);
        assert!(acquire(folder.path(), SHORT, &mut LeaseWatch::default()).is_none(), "a new watcher knows nothing");
        let (taken, after_crash) = acquire(folder.path(), SHORT, &mut watch).unwrap();
        assert!(after_crash);
        let error = silent.ensure_held().unwrap_err().to_string();
        assert!(error.contains("taken over") && error.contains(&std::process::id().to_string()), "{error}");
        drop(silent);
        taken.ensure_held().unwrap();
        drop(taken);
        assert_eq!(epochs(folder.path()).unwrap().len(), 2, "old files do not pile up");
    }

    #[test]
    fn the_times_of_files_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let year = Duration::from_secs(365 * 24 * 3600);
        let jump = |epoch, to| {
            let file = File::options().write(true).open(path(folder.path(), epoch)).unwrap();
            file.set_modified(to).unwrap();
        };
        // The clock of a holder that writes is a year behind, then a year ahead.
        let (held, _) = acquire(folder.path(), SHORT, &mut LeaseWatch::default()).unwrap();
        let (mut watch, until) = (LeaseWatch::default(), Instant::now() + 3 * SHORT);
        for to in [now - year, now + year].into_iter().cycle().take_while(|_| Instant::now() < until) {
            jump(1, to);
            assert!(acquire(folder.path(), SHORT, &mut watch).is_none());
            std::thread::sleep(SHORT / 20);
        }
        drop(held);
        // One that is silent does not keep its lease by a file of the future, or one that seems to be new each time.
        let (silent, _) = acquire(folder.path(), Duration::from_secs(3600), &mut watch).unwrap();
        let expires = 10 * SHORT;
        for to in [now + year, now - year, now + 2 * year] {
            assert!(acquire(folder.path(), expires, &mut watch).is_none());
            jump(2, to);
        }
        std::thread::sleep(expires);
        assert!(acquire(folder.path(), expires, &mut watch).unwrap().1);
        assert!(silent.ensure_held().is_err());
    }

    #[test]
    fn of_many_that_wait_one_takes_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(path(folder.path(), 1), "a killed process\n").unwrap();
        let until = Instant::now() + 4 * SHORT;
        let wait = || {
            let mut watch = LeaseWatch::default();
            while Instant::now() < until {
                if let Some((held, _)) = acquire(folder.path(), SHORT, &mut watch) {
                    return Some(held);
                }
                std::thread::sleep(SHORT / 50);
            }
            None
        };
        // A lease stays alive until all have ended: a thread that starts late would else find it given back.
        let held: Vec<Lease> = std::thread::scope(|scope| {
            [(); 8].map(|()| scope.spawn(wait)).into_iter().filter_map(|waiting| waiting.join().unwrap()).collect()
        });
        let taken = held.iter().filter(|held| held.ensure_held().is_ok()).count();
        assert_eq!(taken, 1);
    }

    #[test]
    fn a_lease_that_cannot_be_read_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        // Not even root can read a folder as a file.
        fs::create_dir(path(folder.path(), 1)).unwrap();
        let mut watch = LeaseWatch::default();
        for _ in 0..2 {
            let error = Lease::try_acquire(folder.path(), Duration::ZERO, &mut watch).unwrap_err();
            assert!(error.to_string().contains(".lease-1: cannot be read"), "{error}");
        }
    }

    #[test]
    fn an_abandoned_lease_ends_as_that_of_a_killed_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = LeaseWatch::default();
        let (mut held, _) = acquire(folder.path(), SHORT, &mut watch).unwrap();
        held.abandon();
        drop(held);
        assert!(acquire(folder.path(), SHORT, &mut watch).is_none(), "it has to expire");
        std::thread::sleep(2 * SHORT);
        assert!(acquire(folder.path(), SHORT, &mut watch).unwrap().1, "and tells of a crash");
    }
}
