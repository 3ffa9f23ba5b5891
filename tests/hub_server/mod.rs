//! A local server that answers as the Hub does.

use lorakit_format::hash::sha256;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A request that the server got.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its path, with the query.
    pub path: String,
    /// Its `Authorization`.
    pub authorization: Option<String>,
    range: Option<String>,
}

/// An answer.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// An answer without content.
    pub fn status(status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { status, headers, body: Vec::new() }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
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
        Self { kind, name: name.to_owned(), commit: commit.to_owned(), tag: None, files }
    }

    /// The same repository, reached by another revision as well.
    pub fn tagged(self, tag: &str) -> Self {
        Self { tag: Some(tag.to_owned()), ..self }
    }

    /// Whether it has a revision.
    fn has(&self, revision: &str) -> bool {
        revision == "main" || revision == self.commit || self.tag.as_deref() == Some(revision)
    }

    fn info(&self) -> Answer {
        let file = |(name, bytes): (&String, &Vec<u8>)| json!({"rfilename": name, "blobId": "0", "lfs": {"sha256": sha256(bytes)}});
        let siblings: Vec<_> = self.files.iter().map(file).collect();
        Answer::json(&json!({"id": self.name, "sha": self.commit, "siblings": siblings}))
    }

    fn file(&self, name: &str, range: Option<&str>) -> Answer {
        let Some(bytes) = self.files.get(name) else {
            return Answer::status(404, &[("X-Error-Code", "EntryNotFound")]);
        };
        let (first, last) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).unwrap_or(("0", ""));
        let first: usize = first.parse().unwrap();
        let end = last.parse::<usize>().map_or(bytes.len(), |last| bytes.len().min(last + 1));
        let etag = format!("\"{}\"", sha256(bytes));
        let content = format!("bytes {first}-{}/{}", end.max(1) - 1, bytes.len());
        let headers =
            [("x-repo-commit", self.commit.as_str()), ("etag", etag.as_str()), ("Content-Range", content.as_str())];
        Answer {
            body: bytes[first.min(end)..end].to_vec(),
            ..Answer::status(if range.is_some() { 206 } else { 200 }, &headers)
        }
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

    /// A mirror that ignores `Range`, and whose `change` is made to what files hold.
    pub fn without_ranges(repositories: Vec<LocalRepository>, change: fn(Vec<u8>) -> Vec<u8>) -> Self {
        Self::start(move |request| {
            let mut answer = answer(&repositories, &Request { range: None, ..request.clone() });
            answer.headers.retain(|(name, _)| name != "Content-Range");
            if request.path.contains("/resolve/") {
                answer.body = change(answer.body);
            }
            answer
        })
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
                let _ = respond(&stream, &answer(&request));
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
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": "));
        found.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    Some(Request { path, authorization: header("Authorization"), range: header("Range") })
}

fn respond(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&answer.body)
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
        Some(own) => file.map_or_else(|| own.info(), |file| own.file(file, request.range.as_deref())),
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
