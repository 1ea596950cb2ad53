//! TLS between real sockets: which peers are accepted, which are not, and what each side learns.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rpc_core::transport::{Tls, TlsError, Transport};
use rpc_core::{Attachment, CallError, Code, Executed, Invoker, Provider, RpcError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, RootCertStore};

use crate::net::{Handlers, Watch, WireClient, WireServer};

/// An authority of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key.
    fn issue(&self, name: &str) -> (String, String) {
        self.issue_with(CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn issue_with(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

async fn provider(tls: Tls) -> Provider {
    Provider::builder()
        .transport(Arc::new(tls))
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap()
}

async fn client(transport: impl Transport, address: &str) -> WireClient {
    let invoker = Invoker::builder()
        .direct([address])
        .transport(Arc::new(transport))
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    WireClient::refer(&invoker)
}

async fn refused(client: &WireClient) -> RpcError {
    match client.echo("x".into()).await {
        Err(CallError::Rpc(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn calls_and_attachments_go_through_tls() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
    let client = client(trusting, provider.local_addr()).await;
    assert_eq!(client.echo("secret".into()).await.unwrap(), "secret");
    let big = Attachment::from(bytes::Bytes::from(vec![7; 3 << 20]));
    let (bytes, twice) = client.double(big).await.unwrap();
    assert_eq!((bytes as usize, twice.len()), (3 << 20, 6 << 20));
}

#[tokio::test]
async fn p23_peer_with_a_wrong_certificate_is_refused_by_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut expired = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    expired.not_before = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2002, 1, 1);
    for (case, (chain, key)) in [
        ("another authority", other.issue("127.0.0.1")),
        ("another name", authority.issue("broker.example")),
        ("expired", authority.issue_with(expired)),
    ] {
        let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
        let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
        let error = refused(&client(trusting, provider.local_addr()).await).await;
        assert_eq!(
            (error.code, error.executed),
            (Code::Unavailable, Executed::No),
            "{case}"
        );
        assert!(
            error.message.contains("certificate is not accepted"),
            "{case}: {}",
            error.message
        );
    }
}

#[tokio::test]
async fn p23_plaintext_to_a_tls_port_and_tls_to_a_plaintext_port_are_told_apart() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let secured = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    let error = refused(&client(rpc_core::transport::Tcp, secured.local_addr()).await).await;
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("this is TLS"), "{}", error.message);
    let plain = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap();
    let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
    let error = refused(&client(trusting, plain.local_addr()).await).await;
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::No));
    assert!(error.message.contains("may not speak TLS"), "{}", error.message);
}

#[tokio::test]
async fn p23_stalled_handshakes_hold_up_nobody() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    // Some say nothing, some stop in the middle of their first record.
    let mut stalled = Vec::new();
    for index in 0..20 {
        let mut peer = TcpStream::connect(provider.local_addr()).await.unwrap();
        if index % 2 == 0 {
            peer.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01])
                .await
                .unwrap();
        }
        stalled.push(peer);
    }
    let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
    let client = client(trusting, provider.local_addr()).await;
    assert_eq!(client.echo("x".into()).await.unwrap(), "x");
    // Their own time is over after 10 s: the provider closes them.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(30), stalled[0].read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "a stalled handshake is never given up");
}

#[tokio::test]
async fn p23_one_host_cannot_hold_all_handshakes() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    let address = provider.local_addr().parse().unwrap();
    // More than there may be handshakes at once, all of another host and all silent.
    let mut stalled = Vec::new();
    for _ in 0..400 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        stalled.push(socket.connect(address).await.unwrap());
    }
    let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
    let client = client(trusting, provider.local_addr()).await;
    // The stalled ones are given up after 10 s: who had to wait for that would be refused in time.
    assert_eq!(
        client
            .echo("x".into())
            .timeout(Duration::from_secs(8))
            .await
            .unwrap(),
        "x"
    );
    // The host's last one is beyond its share, and told so at once.
    let mut last = stalled.pop().unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(8), last.read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

#[tokio::test]
async fn p23_many_clients_of_one_host_that_come_together_are_all_let_in() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(ring)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    // All of them are there before the first one says a word: more than there may be handshakes of one host.
    let mut connected = Vec::new();
    for _ in 0..150 {
        connected.push(TcpStream::connect(provider.local_addr()).await.unwrap());
    }
    // The last one of them was accepted: a later handshake has completed.
    let another = TcpSocket::new_v4().unwrap();
    another.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let another = another
        .connect(provider.local_addr().parse().unwrap())
        .await
        .unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let last = connector.connect(name.clone(), another).await.unwrap();
    let mut clients = JoinSet::new();
    for tcp in connected {
        let (connector, name) = (connector.clone(), name.clone());
        clients.spawn(async move {
            let mut stream = connector.connect(name, tcp).await?;
            // A client that the server turns away learns of it with its first read.
            let silent = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut [0])).await;
            silent.map_or(Ok(stream), |read| {
                Err(read.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into()))
            })
        });
    }
    let mut let_in = vec![last];
    while let Some(client) = clients.join_next().await {
        let_in.push(client.unwrap().unwrap());
    }
    assert_eq!(let_in.len(), 151);
}

#[tokio::test]
async fn p23_end_without_close_notify_is_a_lost_connection_and_not_an_answer() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("127.0.0.1");
    let provider = provider(Tls::builder().certificate(chain, key).build().unwrap()).await;
    // A wire in the middle that is cut without a word.
    let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trusting = Tls::builder().authorities(authority.pem()).build().unwrap();
    let client = client(trusting, &wire.local_addr().unwrap().to_string()).await;
    let call = client.wait().future();
    let (mut near, _) = wire.accept().await.unwrap();
    let mut far = TcpStream::connect(provider.local_addr()).await.unwrap();
    let copying = tokio::io::copy_bidirectional(&mut near, &mut far);
    let running = async {
        while provider.running() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = copying => panic!("{ended:?}"),
        () = running => {}
    }
    drop((near, far));
    let Err(CallError::Rpc(error)) = call.await else {
        panic!("an answer from a wire that was cut");
    };
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
}

#[tokio::test]
async fn only_clients_with_a_certificate_are_let_in_where_one_is_required() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (chain, key) = authority.issue("127.0.0.1");
    let tls = Tls::builder()
        .certificate(chain, key)
        .require_clients(clients.pem());
    let provider = provider(tls.build().unwrap()).await;
    let nobody = Tls::builder().authorities(authority.pem()).build().unwrap();
    let error = refused(&client(nobody, provider.local_addr()).await).await;
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("CertificateRequired"), "{}", error.message);
    for (issuer, let_in) in [(&authority, false), (&clients, true)] {
        let (chain, key) = issuer.issue("client.example");
        let tls = Tls::builder()
            .authorities(authority.pem())
            .certificate(chain, key);
        let outcome = client(tls.build().unwrap(), provider.local_addr())
            .await
            .echo("x".into())
            .await;
        assert_eq!(outcome.is_ok(), let_in, "{outcome:?}");
    }
}

#[test]
fn unusable_certificates_and_keys_are_named() {
    let authority = Authority::new();
    let (chain, key) = authority.issue("a.example");
    let (_, other_key) = authority.issue("b.example");
    let built = |chain: &str, key: &str| Tls::builder().certificate(chain, key).build().unwrap_err();
    assert!(matches!(
        built("nonsense", &key),
        TlsError::Pem {
            what: "certificate",
            ..
        }
    ));
    assert!(matches!(
        built(&chain, "nonsense"),
        TlsError::Pem {
            what: "private key",
            ..
        }
    ));
    assert!(matches!(
        built(&chain, &other_key),
        TlsError::Unusable {
            what: "certificate",
            ..
        }
    ));
    let authorities = Tls::builder().authorities("nonsense").build().unwrap_err();
    assert!(matches!(
        authorities,
        TlsError::Pem {
            what: "authorities",
            ..
        }
    ));
    assert!(matches!(Tls::builder().build(), Err(TlsError::Nothing)));
}
