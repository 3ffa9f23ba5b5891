//! The locks of a library do not depend on how the path of its folder is spelled.
//!
//! In a file of its own: the test changes the current folder of its process.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use lorakit_adapter::Library;
use std::path::Path;
use std::{env, fs};

#[test]
fn the_lease_file_of_the_outer_library_is_found_by_every_path() {
    let temporary = tempfile::tempdir().unwrap();
    let outer = Library::open_or_create(&temporary.path().join("outer"), None).unwrap();
    let inner = outer.root().join("private");
    Library::open_or_create(&inner, None).unwrap();
    fs::write(outer.root().join(".lease"), "60\n").unwrap();
    // What a link is in is no library.
    let link = temporary.path().join("link");
    std::os::unix::fs::symlink(&inner, &link).unwrap();
    fs::create_dir(inner.join("runs")).unwrap();
    env::set_current_dir(&inner).unwrap();
    let (dot, below) = (inner.join("."), inner.join("runs/.."));
    let paths = [&*inner, &dot, &below, &link, Path::new("."), Path::new("../private"), Path::new("runs/..")];
    for path in paths {
        let library = Library::open(path).unwrap();
        assert!(library.takeover_time().unwrap().is_some(), "{}", path.display());
        let held = library.lock().unwrap();
        assert!(Library::open(&inner).unwrap().try_lock().unwrap().is_none(), "{}", path.display());
        drop(held);
    }
    // A link in a library is to what is elsewhere.
    let elsewhere = Library::open_or_create(&temporary.path().join("elsewhere"), None).unwrap();
    std::os::unix::fs::symlink(elsewhere.root(), outer.root().join("linked")).unwrap();
    let linked = Library::open(&outer.root().join("linked")).unwrap();
    assert_eq!((linked.takeover_time().unwrap(), elsewhere.takeover_time().unwrap()), (None, None));
}
