//! TLS 1.3 over TCP, by rustls: there is no fallback to plaintext, no switch that disables checking the
//! peer's name, and no older version. The protocol inside is the same as over plain TCP.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::handshakes::{self, Handshakes};
use super::{Listener, Stream, Transport, tcp};
use crate::BoxFuture;

/// Offered by both sides (RFC 7301): a server of a different protocol is recognised in the handshake.
const ALPN: &[u8] = b"hc-rpc";
/// A handshake that takes longer has failed; the wait for its turn counts, too.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that are in a handshake or wait for one; further ones wait in the kernel's backlog.
const PEERS_MAX: usize = 1024;
/// Each host gets a quarter of everything; its further connections are closed.
const HANDSHAKES: handshakes::Limits = handshakes::Limits {
    at_once: 256,
    host_at_once: 64,
    host_max: PEERS_MAX / 4,
};

/// Why certificates and keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A text is not PEM, or does not contain what it should.
    #[error("the {what} cannot be read: {reason}; expected PEM")]
    Pem {
        /// Which of the given texts.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// They can be read but not used, for example because a key belongs to another certificate.
    #[error("the {what} cannot be used: {reason}")]
    Unusable {
        /// Which of the given texts.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a certificate to show nor authorities to trust were given.
    #[error(
        "TLS needs `.authorities(pem)` to connect, or `.certificate(chain, key)` to listen; neither was given"
    )]
    Nothing,
}

/// Which authorities to trust and which certificate to show. All texts are PEM.
#[derive(Clone, Default)]
#[must_use]
pub struct TlsBuilder {
    authorities: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    client_authorities: Option<Vec<u8>>,
}

// By hand: a private key does not belong in a log.
impl fmt::Debug for TlsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsBuilder").finish_non_exhaustive()
    }
}

impl TlsBuilder {
    /// Certificates of the authorities whose servers are trusted. Required to connect.
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// The certificate to show, starting with its own, and its private key. Required to listen; when
    /// connecting, it is shown to a server that asks for one.
    pub fn certificate(mut self, chain_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        self.certificate = Some((chain_pem.into(), key_pem.into()));
        self
    }

    /// Accepts only peers that show a certificate of one of these authorities.
    pub fn require_clients(mut self, authorities_pem: impl Into<Vec<u8>>) -> Self {
        self.client_authorities = Some(authorities_pem.into());
        self
    }

    /// Checks everything that was given.
    ///
    /// # Errors
    /// [`TlsError`]: which text is wrong, and why.
    pub fn build(self) -> Result<Tls, TlsError> {
        let chain = match &self.certificate {
            Some((chain, key)) => Some((certificates("certificate", chain)?, private_key(key)?)),
            None => None,
        };
        let client = match &self.authorities {
            Some(pem) => Some(Arc::new(client_config(
                roots("authorities", pem)?,
                chain.as_ref(),
            )?)),
            None => None,
        };
        let server = match chain {
            Some(chain) => Some(Arc::new(server_config(
                self.client_authorities.as_deref(),
                chain,
            )?)),
            None => None,
        };
        if client.is_none() && server.is_none() {
            return Err(TlsError::Nothing);
        }
        Ok(Tls { client, server })
    }
}

/// TLS as a [`Transport`], for `.transport(Arc::new(tls))` of a provider or an invoker.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use rpc_core::{Invoker, transport::Tls};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::builder().authorities(std::fs::read("ca.pem")?).build()?;
/// let invoker = Invoker::builder().direct(["broker-a:7070"]).transport(Arc::new(tls)).build().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tls {
    client: Option<Arc<ClientConfig>>,
    server: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("connects", &self.client.is_some())
            .field("listens", &self.server.is_some())
            .finish()
    }
}

impl Tls {
    /// An empty configuration: add authorities to trust or a certificate to show.
    pub fn builder() -> TlsBuilder {
        TlsBuilder::default()
    }
}

impl Transport for Tls {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let config = self.client.clone().ok_or_else(|| {
                unsupported("this TLS has no authorities to trust; give it some with `.authorities(pem)`")
            })?;
            let name = server_name(address)?;
            let tcp = TcpStream::connect(address).await?;
            tcp::prepare(&tcp)?;
            let handshake = TlsConnector::from(config).connect(name, tcp);
            let stream = in_time(handshake)
                .await
                .map_err(|error| explained(&error, address))?;
            Ok(split(stream, Arc::from(address)))
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let config = self.server.clone().ok_or_else(|| {
                unsupported(
                    "this TLS has no certificate to show; give it one with `.certificate(chain, key)`",
                )
            })?;
            let listener: Box<dyn Listener> = Box::new(Bound {
                tcp: TcpListener::bind(address).await?,
                acceptor: TlsAcceptor::from(config),
                peers: Mutex::new(JoinSet::new()),
                handshakes: Handshakes::new(HANDSHAKES),
            });
            Ok(listener)
        })
    }
}

/// A bound address. Handshakes run concurrently, so that a peer that stalls in its own holds up no other.
struct Bound {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    peers: Mutex<JoinSet<io::Result<Stream>>>,
    handshakes: Arc<Handshakes>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl Listener for Bound {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.tcp.local_addr()?.to_string())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let mut peers = self.peers.lock().await;
            loop {
                let running = peers.len();
                tokio::select! {
                    Some(done) = peers.join_next(), if running > 0 => match done {
                        Ok(Ok(stream)) => return Ok(stream),
                        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                        Err(error) => tracing::error!(%error, "TLS handshake ended"),
                    },
                    accepted = tcp::accept(&self.tcp), if running < PEERS_MAX => {
                        let (tcp, peer) = accepted?;
                        let Some(queued) = self.handshakes.enter(&peer) else {
                            tracing::debug!(%peer, limit = HANDSHAKES.host_max, "too many TLS handshakes of this host");
                            continue;
                        };
                        let acceptor = self.acceptor.clone();
                        peers.spawn(async move {
                            let handshake = async {
                                let _permit = queued.permit().await;
                                acceptor.accept(tcp).await
                            };
                            let stream = in_time(handshake).await.map_err(|error| explained(&error, &peer))?;
                            Ok(split(stream, peer))
                        });
                    }
                }
            }
        })
    }
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    outcome.unwrap_or_else(|_elapsed| {
        let text = format!("no handshake within {HANDSHAKE_TIMEOUT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// Explains a failed handshake, and what to do about it.
fn explained(error: &io::Error, peer: &str) -> io::Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match inner {
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(rustls::Error::InvalidCertificate(reason)) => {
            format!("its certificate is not accepted: {reason}")
        }
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection; it may not speak TLS".to_owned()
        }
        None => error.to_string(),
    };
    io::Error::new(error.kind(), format!("TLS handshake with `{peer}` failed: {why}"))
}

fn unsupported(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// The name that the peer's certificate must have: the host of `host:port`.
fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_invalid| {
        let text = format!("`{host}` is neither a host name nor an address, so no certificate can be for it");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

fn split<S>(stream: S, peer: Arc<str>) -> Stream
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(stream);
    Stream {
        read: Box::new(read),
        write: Box::new(write),
        peer,
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_config(roots: RootCertStore, identity: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS version", &error))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable("certificate", &error))?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn server_config(clients: Option<&[u8]>, (chain, key): Identity) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable("TLS version", &error))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(roots("client authorities", pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = verifier
                .build()
                .map_err(|error| unusable("client authorities", &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unusable("certificate", &error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Chosen explicitly, so that it does not depend on the default of the process.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(what: &'static str, error: &dyn fmt::Display) -> TlsError {
    TlsError::Unusable {
        what,
        reason: error.to_string(),
    }
}

fn roots(what: &'static str, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, pem)? {
        roots.add(certificate).map_err(|error| unusable(what, &error))?;
    }
    Ok(roots)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::Pem { what, reason };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all.map_err(|error| fail(error.to_string()))? {
        none if none.is_empty() => Err(fail("there is no certificate in it".to_owned())),
        certificates => Ok(certificates),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsError::Pem {
        what: "private key",
        reason: error.to_string(),
    })
}
