//! Backups in S3-compatible storage, by the crate `object_store`. Of it only the protocol is used: requests go out through the
//! same HTTP client as all others of this program, and are signed with the same SHA-256, so no TLS library comes in, and no
//! second HTTP client.
//!
//! What holds: an object is there whole or not at all; a large one is sent in parts and appears when the last was taken.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use hyper::body::Body;
use hyper::body::Frame;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::ClientOptions;
use object_store::MultipartUpload;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutPayload;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::client::CryptoProvider;
use object_store::client::DigestAlgorithm;
use object_store::client::DigestContext;
use object_store::client::HmacContext;
use object_store::client::HttpClient;
use object_store::client::HttpConnector;
use object_store::client::HttpError;
use object_store::client::HttpErrorKind;
use object_store::client::HttpRequest;
use object_store::client::HttpRequestBody;
use object_store::client::HttpResponse;
use object_store::client::HttpResponseBody;
use object_store::client::HttpService;
use object_store::client::Signer;
use object_store::client::SigningAlgorithm;
use object_store::path::Path;
use sha2::Digest;
use sha2::Sha256;

use super::manifest::MANIFEST;
use super::store::Doing;
use super::store::NewFile;
use super::store::Store;
use crate::cli::Failure;
use crate::cli::client::Source;
use crate::cli::whole_file::Sink;

/// An object that is larger than this is sent in parts of this size. Servers take 10 000 parts of an object.
const PART_BYTES: usize = 16 << 20;
/// How long making a connection may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long one request may take until its answer begins, and a pause within the answer; and how long it is tried again.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// A bucket, or a folder in it.
pub(super) struct Bucket {
    store: Arc<AmazonS3>,
    name: String,
    prefix: String,
}

fn failed(what: &str, path: &str, error: &object_store::Error) -> Failure {
    let remedy = "check --s3-endpoint, the bucket's name and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION";
    Failure::here(format!("cannot {what} {path}: {error}"), remedy)
}

impl Bucket {
    /// `bucket` is BUCKET or BUCKET/PREFIX.
    pub(super) fn open(bucket: &str, endpoint: Option<&str>) -> Result<Self, Failure> {
        let (name, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        if name.is_empty() {
            return Err(Failure::usage("s3:// names no bucket", "write s3://BUCKET/PREFIX"));
        }
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            if set(variable).is_none() {
                let what = format!("{variable} is not set");
                return Err(Failure::usage(what, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
            }
        }
        let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".to_owned());
        let told =
            endpoint.map(str::to_owned).or_else(|| set("AWS_ENDPOINT_URL_S3")).or_else(|| set("AWS_ENDPOINT_URL"));
        let endpoint = told.unwrap_or_else(|| format!("http://s3.{region}.amazonaws.com"));
        if !endpoint.starts_with("http://") {
            let what = format!("{endpoint}: this version does not speak TLS");
            return Err(Failure::usage(what, "name the server with http://, or a local proxy that speaks TLS to it"));
        }
        let retry = object_store::RetryConfig { max_retries: 5, retry_timeout: ANSWER_TIME_MAX, ..Default::default() };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_region(region)
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_allow_http(true)
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_crypto_provider(Arc::new(Sha2))
            .with_http_connector(Plain)
            .build();
        let store = store.map_err(|error| failed("use", &format!("s3://{bucket}"), &error))?;
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { store: Arc::new(store), name: name.to_owned(), prefix })
    }

    fn path(&self, path: &str) -> Path {
        Path::from(format!("{}{path}", self.prefix))
    }

    fn named(&self, path: &Path) -> String {
        format!("s3://{}/{path}", self.name)
    }
}

impl Store for Bucket {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.name, self.prefix).trim_end_matches('/').to_owned()
    }

    fn folders(&self) -> Doing<'_, Vec<String>> {
        Box::pin(async move {
            let prefix = self.path("");
            let listed = self.store.list_with_delimiter(Some(&prefix)).await;
            let listed = listed.map_err(|error| failed("list", &self.named(&prefix), &error))?;
            let mut names: Vec<String> =
                listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
            names.sort();
            Ok(names)
        })
    }

    fn read(&self, path: String) -> Doing<'_, Option<Bytes>> {
        Box::pin(async move {
            let path = self.path(&path);
            let fail = |error| failed("read", &self.named(&path), &error);
            match self.store.get(&path).await {
                Ok(found) => found.bytes().await.map(Some).map_err(fail),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(fail(error)),
            }
        })
    }

    fn open(&self, path: String) -> Doing<'_, (u64, Source)> {
        Box::pin(async move {
            let path = self.path(&path);
            let head = self.store.head(&path).await.map_err(|error| failed("read", &self.named(&path), &error))?;
            let store = self.store.clone();
            let source: Source = Arc::new(move || {
                let (store, path) = (store.clone(), path.clone());
                let pieces = async move { store.get(&path).await.map(|found| found.into_stream()) };
                stream::once(pieces).try_flatten().map_err(std::io::Error::other).boxed()
            });
            Ok((head.size, source))
        })
    }

    fn write(&self, path: String) -> Doing<'_, Box<dyn NewFile>> {
        let path = self.path(&path);
        let named = self.named(&path);
        let object = Object { store: self.store.clone(), path, named, buffer: BytesMut::new(), upload: None };
        Box::pin(std::future::ready(Ok(Box::new(object) as Box<dyn NewFile>)))
    }

    fn remove(&self, folder: String) -> Doing<'_, ()> {
        Box::pin(async move {
            let folder = self.path(&folder);
            let fail = |error| failed("remove", &self.named(&folder), &error);
            match self.store.delete(&folder.clone().join(MANIFEST)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(fail(error)),
            }
            let objects: Vec<_> = self.store.list(Some(&folder)).try_collect().await.map_err(fail)?;
            for object in objects {
                self.store.delete(&object.location).await.map_err(fail)?;
            }
            Ok(())
        })
    }
}

/// An object that is being sent.
struct Object {
    store: Arc<AmazonS3>,
    path: Path,
    named: String,
    buffer: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Object {
    async fn send_part(&mut self) -> Result<(), Failure> {
        let part = self.buffer.split().freeze();
        let fail = |error| failed("write", &self.named, &error);
        if self.upload.is_none() {
            self.upload = Some(self.store.put_multipart(&self.path).await.map_err(fail)?);
        }
        match &mut self.upload {
            Some(upload) => upload.put_part(PutPayload::from(part)).await.map_err(fail),
            None => Ok(()),
        }
    }
}

impl Sink for Object {
    fn write(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        self.buffer.extend_from_slice(&piece);
        if self.buffer.len() < PART_BYTES {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(self.send_part())
    }
}

impl NewFile for Object {
    fn finish(mut self: Box<Self>) -> Doing<'static, ()> {
        Box::pin(async move {
            if self.upload.is_none() {
                let whole = PutPayload::from(self.buffer.split().freeze());
                let put = self.store.put(&self.path, whole).await;
                return put.map(drop).map_err(|error| failed("write", &self.named, &error));
            }
            if !self.buffer.is_empty() {
                self.send_part().await?;
            }
            if let Some(upload) = &mut self.upload {
                upload.complete().await.map_err(|error| failed("write", &self.named, &error))?;
                self.upload = None;
            }
            Ok(())
        })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // The parts of what was never finished cost money until somebody gives them up.
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

/// Makes clients that speak plain HTTP.
#[derive(Debug)]
struct Plain;

#[derive(Debug)]
struct PlainClient(legacy::Client<TcpConnector, HttpRequestBody>);

impl HttpConnector for Plain {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut connector = TcpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
        Ok(HttpClient::new(PlainClient(legacy::Client::builder(TokioExecutor::new()).build(connector))))
    }
}

fn http_error(error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Interrupted, error)
}

impl HttpService for PlainClient {
    fn call<'this, 'call>(
        &'this self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'call>>
    where
        'this: 'call,
        Self: 'call,
    {
        Box::pin(async move {
            let answer = match tokio::time::timeout(ANSWER_TIME_MAX, self.0.request(request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) if error.is_connect() => return Err(HttpError::new(HttpErrorKind::Connect, error)),
                Ok(Err(error)) => return Err(http_error(error)),
                Err(late) => return Err(HttpError::new(HttpErrorKind::Timeout, late)),
            };
            Ok(answer.map(|body| HttpResponseBody::new(StreamBody::new(frames(body)))))
        })
    }
}

/// A body as it comes: one that stops coming is an error, not a wait without an end.
fn frames<B>(body: B) -> impl Stream<Item = Result<Frame<Bytes>, HttpError>> + Send + Sync
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        match tokio::time::timeout(ANSWER_TIME_MAX, body.frame()).await {
            Ok(None) => None,
            Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
            Ok(Some(Err(error))) => Some((Err(http_error(error)), None)),
            Err(late) => Some((Err(HttpError::new(HttpErrorKind::Timeout, late)), None)),
        }
    })
}

/// SHA-256 and HMAC for signatures.
#[derive(Debug)]
struct Sha2;

struct Hash(Sha256, Vec<u8>);

struct Hmac {
    inner: Sha256,
    outer: Sha256,
    done: Vec<u8>,
}

fn not_sha256(what: impl std::fmt::Debug) -> object_store::Error {
    object_store::Error::NotSupported { source: format!("{what:?} is not needed for S3").into() }
}

impl CryptoProvider for Sha2 {
    fn digest(&self, algorithm: DigestAlgorithm) -> object_store::Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hash(Sha256::new(), Vec::new()))),
            other => Err(not_sha256(other)),
        }
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> object_store::Result<Box<dyn HmacContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hmac::new(secret))),
            other => Err(not_sha256(other)),
        }
    }

    fn sign(&self, algorithm: SigningAlgorithm, _: &[u8]) -> object_store::Result<Box<dyn Signer>> {
        Err(not_sha256(algorithm))
    }
}

impl DigestContext for Hash {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        self.1 = self.0.finalize_reset().to_vec();
        Ok(&self.1)
    }
}

impl Hmac {
    /// RFC 2104.
    fn new(secret: &[u8]) -> Self {
        const BLOCK_BYTES: usize = 64;
        let mut key = if secret.len() > BLOCK_BYTES { Sha256::digest(secret).to_vec() } else { secret.to_vec() };
        key.resize(BLOCK_BYTES, 0);
        let padded = |pad: u8| Sha256::new_with_prefix(key.iter().map(|byte| byte ^ pad).collect::<Vec<u8>>());
        Self { inner: padded(0x36), outer: padded(0x5c), done: Vec::new() }
    }
}

impl HmacContext for Hmac {
    fn update(&mut self, data: &[u8]) {
        self.inner.update(data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        let inner = self.inner.finalize_reset();
        self.outer.update(inner);
        self.done = self.outer.finalize_reset().to_vec();
        Ok(&self.done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// RFC 4231, test cases 1, 2 and 6: a short key, a shorter one, and one that is longer than a block.
    #[test]
    fn signatures_are_made_with_the_hmac_of_the_rfc() {
        let cases: [(&[u8], &[u8], &str); 3] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, text, expected) in cases {
            let mut hmac = Sha2.hmac(DigestAlgorithm::Sha256, key).unwrap();
            text.chunks(3).for_each(|piece| hmac.update(piece));
            assert_eq!(hex::encode(hmac.finish().unwrap()), expected);
        }
    }

    /// A server that answered with half an object and then nothing: `backup verify` waited for ever, and so did a schedule.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stops_coming_is_an_error() {
        let half = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"half")))]);
        let mut frames = std::pin::pin!(frames(StreamBody::new(half.chain(stream::pending()))));
        assert_eq!(frames.next().await.unwrap().unwrap().into_data().unwrap(), "half");
        assert!(matches!(frames.next().await.unwrap().unwrap_err().kind(), HttpErrorKind::Timeout));
        assert!(frames.next().await.is_none());
    }
}
