import KubernetesObjects

/// One GET for objects of a kind: https://kubernetes.io/docs/reference/using-api/api-concepts.
struct ObjectRequest: Hashable, Sendable {
  enum Form: Hashable, Sendable {
    /// A page of a list. `version` "": the newest there is; "0": whatever the server has at hand; else nothing older.
    case list(version: String, next: String)
    /// What comes after a version.
    case watch(after: String, seconds: Int)
    /// All that there is, nothing older than a version, and then what comes after it.
    case watchFromStart(version: String, seconds: Int)
  }

  var kind: ObjectKind
  var form: Form

  /// Objects in a page. A server that answers from its cache may send all at once.
  static let pageSize = 500

  var isWatch: Bool {
    if case .list = form { false } else { true }
  }

  /// Beneath the server's address, with the query.
  var path: String {
    let root = kind.apiGroup.isEmpty ? "/api/v1" : "/apis/\(kind.apiGroup)/v1"
    let query = (selectors + parameters).map { "\($0.0)=\(Self.escaped($0.1))" }
    return "\(root)/\(kind.plural)?\(query.joined(separator: "&"))"
  }

  private var selectors: [(String, String)] {
    switch kind {
    // Those of other proxies too, other than kube-proxy: their addresses must not be taken for unallocated ones.
    case .service: []
    case .endpointSlice: [("labelSelector", "!\(WellKnown.serviceProxyName),!\(WellKnown.headless)")]
    case .node, .pod, .namespace, .networkPolicy, .serviceCIDR: []
    }
  }

  private var parameters: [(String, String)] {
    switch form {
    case .list(let version, let next):
      // The token says the version.
      if !next.isEmpty { return [("limit", "\(Self.pageSize)"), ("continue", next)] }
      let match = version.isEmpty ? [] : [("resourceVersion", version), ("resourceVersionMatch", "NotOlderThan")]
      return [("limit", "\(Self.pageSize)")] + match
    case .watch(let version, let seconds):
      return [
        ("watch", "true"), ("resourceVersion", version), ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", "\(seconds)"),
      ]
    case .watchFromStart(let version, let seconds):
      return [
        ("watch", "true"), ("sendInitialEvents", "true"), ("resourceVersion", version),
        ("resourceVersionMatch", "NotOlderThan"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", "\(seconds)"),
      ]
    }
  }

  /// Everything but RFC 3986's unreserved characters.
  private static func escaped(_ text: String) -> String {
    var result = ""
    for byte in text.utf8 {
      switch UnicodeScalar(byte) {
      case "a"..."z", "A"..."Z", "0"..."9", "-", ".", "_", "~": result.unicodeScalars.append(UnicodeScalar(byte))
      default: result += "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
      }
    }
    return result
  }
}

extension ObjectKind {
  /// As paths have it.
  var plural: String {
    switch self {
    case .service: "services"
    case .endpointSlice: "endpointslices"
    case .node: "nodes"
    case .pod: "pods"
    case .namespace: "namespaces"
    case .networkPolicy: "networkpolicies"
    case .serviceCIDR: "servicecidrs"
    }
  }
}

/// Whoever asks the API server.
protocol APIServerConnection: Sendable {
  /// - Returns: the answer to a request that was granted, its body still to come.
  /// - Throws: `APIStatus` where the server refuses; anything else where there is no answer.
  func get(_ request: ObjectRequest) async throws -> APIAnswer
}

struct APIAnswer: Sendable {
  var format: WireFormat
  /// In pieces as they come. It ends with an error where the connection does.
  var body: AsyncThrowingStream<[UInt8], any Error>
}
