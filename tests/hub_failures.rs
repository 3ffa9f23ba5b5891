//! Failures of the Hub, each with a message of its own, and servers that do otherwise than the Hub.
#![allow(clippy::unwrap_used)]

mod binary;
mod hub_server;

use binary::assert_contains;
use hub_server::{Answer, Behavior, COMMIT, HubServer, LocalRepository, info, pico_folder};
use std::path::Path;

/// Each message has words of its own and says what to do.
#[test]
fn every_failure_has_a_message_of_its_own() {
    let work = tempfile::tempdir().unwrap();
    let home = work.path().to_str().unwrap();
    let message = |status: u16, headers: &[(&str, &str)], settings: &[(&str, &str)]| {
        let server = HubServer::answering(Answer::status(status, headers));
        let all = [&[("HF_ENDPOINT", server.address()), ("HF_HOME", home)], settings].concat();
        info("hub:acme/gated", &all).failed(1)
    };
    for status in [401, 403] {
        let text = message(status, &[("X-Error-Code", "GatedRepo")], &[]);
        assert_contains(&text, &["no access", "log in", "HF_TOKEN", "accept the terms", "/acme/gated"]);
    }
    assert_contains(
        &message(403, &[], &[("HF_TOKEN", "abc")]),
        &["no access", "the token that was sent", "accept the terms"],
    );
    let repository = message(404, &[("X-Error-Code", "RepoNotFound")], &[]);
    assert_contains(&repository, &["no such repository", "hub:acme/gated", "check organization and name"]);
    let revision = message(404, &[("X-Error-Code", "RevisionNotFound")], &[]);
    assert_contains(&revision, &["no such revision", "a branch, a tag or a full commit hash"]);
    assert_contains(&message(429, &[("Retry-After", "7")], &[]), &["rate limit", "try again in 7 seconds, or log in"]);
    let limit = message(429, &[("RateLimit", "\"api\";r=0;t=55")], &[("HF_TOKEN", "abc")]);
    assert_contains(&limit, &["rate limit", "in 55 seconds"]);
    assert!(!limit.contains("log in"), "{limit}");
    assert_contains(&message(503, &[], &[]), &["the Hub failed (HTTP 503"]);
    let network = info("hub:acme/x", &[("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", home)]).failed(1);
    assert_contains(&network, &["no network: http://127.0.0.1:9 cannot be reached", "the cache", "has no copy"]);
    let address = info("hub:acme/x", &[("HF_ENDPOINT", "127.0.0.1:9"), ("HF_HOME", home)]).failed(1);
    assert_contains(
        &address,
        &["HF_ENDPOINT is `127.0.0.1:9`; expected an address that begins with https:// or http://"],
    );
    let offline = info("hub:acme/x", &[("HF_HUB_OFFLINE", "1"), ("HF_HOME", home)]).failed(1);
    assert_contains(&offline, &["HF_HUB_OFFLINE is set", "has no copy"]);
}

/// A server that has `folder` as a model, with what it does otherwise than the Hub.
fn departing(folder: &Path, behavior: Behavior) -> HubServer {
    HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, folder).with(behavior)])
}

#[test]
fn files_that_are_stored_at_another_host_are_downloaded_without_the_token() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let storage = HubServer::of(vec![LocalRepository::model("acme/tiny", COMMIT, &folder)]);
    for gives_etags in [true, false] {
        let home = work.path().join(gives_etags.to_string());
        let behavior = Behavior { storage: Some((storage.address().to_owned(), gives_etags)), ..Behavior::default() };
        let server = departing(&folder, behavior);
        let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap()), ("HF_TOKEN", "secret")];
        info("hub:acme/tiny", &settings).ok();
        let snapshot = home.join("hub/models--acme--tiny/snapshots").join(COMMIT);
        let read = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(read(&snapshot), read(&folder));
        assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")));
    }
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()), "{:?}", storage.requests());
}

#[test]
fn files_are_downloaded_without_ranges_and_when_empty() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    std::fs::write(folder.join("LICENSE"), "").unwrap();
    for no_ranges in [false, true] {
        let home = work.path().join(no_ranges.to_string());
        let server = departing(&folder, Behavior { no_ranges, ..Behavior::default() });
        info("hub:acme/tiny", &[("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())]).ok();
        let snapshot = home.join("hub/models--acme--tiny/snapshots").join(COMMIT);
        for kept in ["model.safetensors", "LICENSE"] {
            assert_eq!(
                std::fs::read(snapshot.join(kept)).unwrap(),
                std::fs::read(folder.join(kept)).unwrap(),
                "{kept}"
            );
        }
    }
}

#[test]
fn an_interrupted_download_resumes() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let content = std::fs::read(folder.join("model.safetensors")).unwrap();
    let home = work.path().join("home");
    let cache = home.join("hub/models--acme--tiny");
    let open = |behavior: Behavior| {
        let server = departing(&folder, behavior);
        let ran = info("hub:acme/tiny", &[("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())]);
        (ran, server.requests())
    };
    // A server without ranges that ends every connection early makes no progress.
    let cut = content.len() / 3;
    let (ran, _) = open(Behavior { cut: Some(cut), no_ranges: true, ..Behavior::default() });
    assert_contains(&ran.failed(1), &["model.safetensors: cannot be downloaded: the download stopped early"]);
    let part = cache.join("blobs").join(format!("{}.incomplete", lorakit_format::hash::sha256(&content)));
    assert_eq!(std::fs::read(&part).unwrap(), content[..cut]);
    // One with ranges does, connection by connection.
    let (ran, requests) = open(Behavior { cut: Some(cut), ..Behavior::default() });
    ran.ok();
    let ranges: Vec<_> = requests.iter().filter_map(|request| request.range.clone()).collect();
    assert_eq!(ranges[..2], [format!("bytes={cut}-"), format!("bytes={}-", 2 * cut)]);
    assert!(!part.exists());
    assert_eq!(std::fs::read(cache.join("snapshots").join(COMMIT).join("model.safetensors")).unwrap(), content);
    // A partial file that is longer than the file is none of it.
    std::fs::remove_dir_all(cache.join("snapshots")).unwrap();
    std::fs::remove_file(part.with_extension("")).unwrap();
    std::fs::write(&part, [&content[..], b"more"].concat()).unwrap();
    open(Behavior::default()).0.ok();
    assert_eq!(std::fs::read(cache.join("snapshots").join(COMMIT).join("model.safetensors")).unwrap(), content);
}

/// An endpoint can be anyone's, and a cache is shared by programs.
#[test]
fn no_answer_leads_out_of_the_cache() {
    let work = tempfile::tempdir().unwrap();
    let folder = pico_folder(work.path());
    let home = work.path().join("home");
    let cache = home.join("hub/models--acme--tiny");
    std::fs::create_dir_all(cache.join("refs")).unwrap();
    std::fs::create_dir_all(cache.join("blobs")).unwrap();
    let victim = home.join("victim");
    std::fs::write(&victim, "kept").unwrap();
    let settings = |server: &HubServer| {
        let settings = [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())];
        settings.map(|(name, value)| (name, value.to_owned()))
    };
    let open = |server: &HubServer| {
        let settings = settings(server);
        info("hub:acme/tiny", &settings.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let server = HubServer::of(vec![LocalRepository::model("acme/tiny", "../../../victim", &folder)]);
    assert_contains(&open(&server).failed(1), &["not an answer of the Hub", "../../../victim"]);
    let etag = Some("../../../victim".to_owned());
    open(&departing(&folder, Behavior { etag, ..Behavior::default() })).ok();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
    // A reference of the cache to a folder elsewhere.
    std::fs::rename(&folder, home.join("outside")).unwrap();
    std::fs::write(cache.join("refs/main"), "../../../outside").unwrap();
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_HOME", home.to_str().unwrap())];
    assert_contains(&info("hub:acme/tiny", &offline).failed(1), &["has no copy"]);
}

#[test]
fn the_proxy_is_not_used_for_hosts_of_no_proxy() {
    let work = tempfile::tempdir().unwrap();
    let home = work.path().join("home");
    let server = departing(&pico_folder(work.path()), Behavior::default());
    // Nothing answers there.
    let settings =
        [("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap()), ("HTTP_PROXY", "http://127.0.0.1:9")];
    assert_contains(&info("hub:acme/tiny", &settings).failed(1), &["no network"]);
    assert!(server.requests().is_empty());
    for no_proxy in ["NO_PROXY", "no_proxy"] {
        let none = [&settings[..], &[(no_proxy, "localhost,127.0.0.1")]].concat();
        info("hub:acme/tiny", &none).ok();
    }
}

#[test]
fn what_a_repository_lacks_is_named() {
    let work = tempfile::tempdir().unwrap();
    let home = work.path().join("home");
    let absent = Some("tokenizer.json".to_owned());
    let server = departing(&pico_folder(work.path()), Behavior { absent, ..Behavior::default() });
    let open = |server: &HubServer| {
        info("hub:acme/tiny", &[("HF_ENDPOINT", server.address()), ("HF_HOME", home.to_str().unwrap())]).failed(1)
    };
    let message = open(&server);
    assert_contains(&message, &["no such file (HTTP 404)", "lists `tokenizer.json` but does not have it"]);
    assert!(!message.contains("check organization"), "{message}");
    let empty = work.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_contains(&open(&departing(&empty, Behavior::default())), &["the repository has no", "; it has no files"]);
}
