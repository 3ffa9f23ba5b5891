//! A local server that answers as the Hub does, and commands that use it.
#![allow(dead_code, reason = "every test file uses a part of this")]

use crate::binary::{Ran, command, run};
use lorakit_format::hash::sha256;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// A request that the server got.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its path, with the query.
    pub path: String,
    /// Its `Authorization`.
    pub authorization: Option<String>,
    /// Its `Range`.
    pub range: Option<String>,
    is_head: bool,
}

/// An answer.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The bytes of the body after which the connection ends.
    cut: usize,
}

impl Answer {
    /// An answer without content.
    pub fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { status, headers, body: Vec::new(), cut: usize::MAX }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::status(200, &[]) }
    }
}

/// A repository that the server has.
#[derive(Clone)]
pub struct LocalRepository {
    kind: &'static str,
    name: String,
    commit: String,
    tag: Option<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// What the server does otherwise than the Hub.
    pub behavior: Behavior,
}

/// How a server departs from the Hub.
#[derive(Clone, Default)]
pub struct Behavior {
    /// It answers a request for a range with the whole file.
    pub no_ranges: bool,
    /// The address to which it redirects for files, and whether it gives their ETags itself.
    pub storage: Option<(String, bool)>,
    /// It ends the connection after so many bytes of a file.
    pub cut: Option<usize>,
    /// The ETag of all files.
    pub etag: Option<String>,
    /// A file that it lists and does not have.
    pub absent: Option<String>,
    /// The size that it lists for all files.
    pub listed_size: Option<u64>,
}

impl LocalRepository {
    /// A model repository of a folder's files, on the branch `main`.
    pub fn model(name: &str, commit: &str, folder: &Path) -> Self {
        Self::new("models", name, commit, folder)
    }

    /// A dataset repository of a folder's files, on the branch `main`.
    pub fn dataset(name: &str, commit: &str, folder: &Path) -> Self {
        Self::new("datasets", name, commit, folder)
    }

    fn new(kind: &'static str, name: &str, commit: &str, folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        read(folder, "", &mut files);
        let behavior = Behavior::default();
        Self { kind, name: name.to_owned(), commit: commit.to_owned(), tag: None, files, behavior }
    }

    /// The same repository, reached by another revision as well.
    pub fn tagged(self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), ..self }
    }

    /// The same repository, on a server that departs from the Hub.
    pub fn with(self, behavior: Behavior) -> Self {
        Self { behavior, ..self }
    }

    /// Whether it has a revision.
    fn has(&self, revision: &str) -> bool {
        revision == "main" || revision == self.commit || self.tag.as_deref() == Some(revision)
    }

    fn info(&self) -> Answer {
        let file = |(name, bytes): (&String, &Vec<u8>)| {
            let size = self.behavior.listed_size.unwrap_or(bytes.len() as u64);
            json!({"rfilename": name, "blobId": "0", "size": size, "lfs": {"sha256": sha256(bytes)}})
        };
        let siblings: Vec<_> = self.files.iter().map(file).collect();
        Answer::json(&json!({"id": self.name, "sha": self.commit, "siblings": siblings}))
    }

    fn file(&self, name: &str, request: &Request) -> Answer {
        let behavior = &self.behavior;
        let Some(bytes) = self.files.get(name).filter(|_| behavior.absent.as_deref() != Some(name)) else {
            return Answer::status(404, &[("X-Error-Code", "EntryNotFound")]);
        };
        let etag = format!("\"{}\"", behavior.etag.clone().unwrap_or_else(|| sha256(bytes)));
        let (commit, size) = (("X-Repo-Commit", self.commit.as_str()), bytes.len().to_string());
        if let Some((storage, tells)) = &behavior.storage {
            let location = format!("{storage}{}", request.path);
            let linked = [("X-Linked-ETag", etag.as_str()), ("X-Linked-Size", size.as_str())];
            let headers = [&[commit, ("Location", location.as_str())], &linked[..if *tells { 2 } else { 0 }]].concat();
            return Answer::status(302, &headers);
        }
        let range = request.range.as_deref().filter(|_| !behavior.no_ranges);
        let (status, body, content) = match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            None => (200, bytes.clone(), None),
            Some((first, last)) => {
                let first: usize = first.parse().unwrap();
                let end = last.parse::<usize>().map_or(bytes.len(), |last| bytes.len().min(last + 1));
                if first >= bytes.len() {
                    return Answer::status(416, &[("Content-Range", &format!("bytes */{size}"))]);
                }
                (206, bytes[first..end].to_vec(), Some(format!("bytes {first}-{}/{size}", end - 1)))
            }
        };
        let content = content.iter().map(|content| ("Content-Range", content.as_str()));
        let headers: Vec<_> = [commit, ("ETag", etag.as_str())].into_iter().chain(content).collect();
        Answer { body, cut: behavior.cut.unwrap_or(usize::MAX), ..Answer::status(status, &headers) }
    }
}

fn read(folder: &Path, within: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{within}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
}

/// The server. Its thread ends with the test.
pub struct HubServer {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl HubServer {
    /// A server with these repositories.
    pub fn of(repositories: Vec<LocalRepository>) -> Self {
        Self::start(move |request| answer(&repositories, request))
    }

    /// A server that answers everything alike.
    pub fn answering(answer: Answer) -> Self {
        Self::start(move |_| answer.clone())
    }

    fn start(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = request(&stream) else { continue };
                log.lock().unwrap().push(request.clone());
                // A client that went away is no failure of the server.
                let _ = respond(&stream, &answer(&request), request.is_head);
            }
        });
        Self { address, requests }
    }

    /// Its address, for `HF_ENDPOINT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let line = lines.next()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": "));
        found.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    Some(Request {
        path,
        authorization: header("Authorization"),
        range: header("Range"),
        is_head: line.starts_with("HEAD "),
    })
}

fn respond(mut stream: &TcpStream, answer: &Answer, is_head: bool) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(if is_head { &[] } else { &answer.body[..answer.body.len().min(answer.cut)] })
}

/// The Hub's answer: a repository's description, a list of repositories (two a page), or a file.
fn answer(repositories: &[LocalRepository], request: &Request) -> Answer {
    let path = request.path.trim_start_matches('/');
    if let Some(query) = path.strip_prefix("api/models?") {
        return list(repositories, query);
    }
    let (repository, revision, file) = match path.strip_prefix("api/") {
        Some(rest) => {
            let (repository, revision) = rest.split_once("/revision/").unwrap();
            (repository.to_owned(), revision.trim_end_matches("?blobs=true"), None)
        }
        None => {
            let (repository, rest) = path.split_once("/resolve/").unwrap();
            let (revision, file) = rest.split_once('/').unwrap();
            let kind = if repository.starts_with("datasets/") { "" } else { "models/" };
            (format!("{kind}{repository}"), revision, Some(file))
        }
    };
    let named = |own: &&LocalRepository| format!("{}/{}", own.kind, own.name) == repository;
    let revision = revision.replace("%2F", "/");
    if !repositories.iter().any(|own| named(&own)) {
        return Answer::status(404, &[("X-Error-Code", "RepoNotFound")]);
    }
    match repositories.iter().filter(named).find(|own| own.has(&revision)) {
        None => Answer::status(404, &[("X-Error-Code", "RevisionNotFound")]),
        Some(own) => file.map_or_else(|| own.info(), |file| own.file(file, request)),
    }
}

fn list(repositories: &[LocalRepository], query: &str) -> Answer {
    let parameters: BTreeMap<&str, &str> = query.split('&').filter_map(|part| part.split_once('=')).collect();
    let (author, search) = (format!("{}/", parameters["author"]), parameters["search"]);
    let found = repositories.iter().filter(|own| own.name.starts_with(&author) && own.name.contains(search));
    let found: Vec<_> = found.map(|own| json!({"id": own.name})).collect();
    let start: usize = parameters.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let end = found.len().min(start + 2);
    let mut answer = Answer::json(&json!(found[start..end]));
    if end < found.len() {
        let next = format!("</api/models?author={}&search={search}&cursor={end}>; rel=\"next\"", parameters["author"]);
        answer.headers.push(("Link".to_owned(), next));
    }
    answer
}

/// The commit of most repositories.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A command with these settings of the Hub and no others.
pub fn with(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = command(arguments);
    let hub =
        ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_ENDPOINT", "XDG_CACHE_HOME"];
    let proxy =
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];
    for name in hub.iter().chain(&proxy) {
        command.env_remove(name);
    }
    command.envs(settings.iter().copied());
    command
}

/// The bundled base as a folder, with files that the Hub's repositories have.
pub fn pico_folder(within: &Path) -> PathBuf {
    let folder = within.join("pico");
    run(["base", "write", "--out", folder.to_str().unwrap()]).ok();
    for (name, text) in [
        ("pytorch_model.bin", "no"),
        ("README.md", "# pico"),
        ("LICENSE", "Apache"),
        ("chat_template.jinja", "{{ messages }}"),
        ("generation_config.json", "{}"),
        ("added_tokens.json", "{}"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    std::fs::write(folder.join("additional_chat_templates/tool_use.jinja"), "{{ tools }}").unwrap();
    folder
}

/// Runs `base info`.
pub fn info(base: &str, settings: &[(&str, &str)]) -> Ran {
    with(&["base", "info", base, "--json"], settings).output().unwrap().into()
}
