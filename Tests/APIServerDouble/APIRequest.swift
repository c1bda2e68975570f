import Foundation

/// What a request asks of which objects, by https://kubernetes.io/docs/reference/using-api/api-concepts. What a real server
/// refuses is refused.
struct APIRequest: Sendable {
  enum Verb: Sendable { case get, list, watch, create, replace, patch, delete }

  var verb: Verb
  var kind: ServedKind
  /// nil: all, or there are none.
  var namespace: String?
  var name: String?
  /// The object's `autoscaling/v1` Scale is meant.
  var isScale: Bool
  private var query: [String: String]

  init(method: String, path: String, query text: String) throws(Refusal) {
    guard let (kind, rest) = Self.kind(of: path) else {
      throw .notFound("the server could not find the requested resource")
    }
    self.kind = kind
    (namespace, name, isScale) = rest
    query = Self.query(text)
    switch (method, name) {
    case ("GET", nil): verb = Self.isSet(query["watch"]) ? .watch : .list
    case ("GET", _?): verb = .get
    case ("POST", nil): verb = .create
    case ("PUT", _?): verb = .replace
    case ("PATCH", _?): verb = .patch
    case ("DELETE", _?) where !isScale: verb = .delete
    default: throw Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }
  }

  private static func kind(
    of path: String
  ) -> (ServedKind, (namespace: String?, name: String?, isScale: Bool))? {
    for kind in ServedKind.all where path.hasPrefix(kind.root + "/") {
      var parts = path.dropFirst(kind.root.count + 1).split(separator: "/", omittingEmptySubsequences: false)
        .map { $0.removingPercentEncoding ?? "" }
      var namespace: String?
      if kind.isNamespaced, parts.count >= 3, parts[0] == "namespaces" {
        namespace = parts[1]
        parts.removeFirst(2)
      }
      let isScale = kind.isScalable && parts.count == 3 && parts[2] == "scale"
      guard parts.first == kind.plural, parts.count <= 2 || isScale, !parts.contains("") else { continue }
      return (kind, (namespace, parts.count > 1 ? parts[1] : nil, isScale))
    }
    return nil
  }

  private static func query(_ text: String) -> [String: String] {
    var values: [String: String] = [:]
    for pair in text.split(separator: "&") {
      let parts = pair.replacing("+", with: " ").split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      values[String(parts[0])] = parts.count == 2 ? String(parts[1]).removingPercentEncoding ?? "" : ""
    }
    return values
  }

  private static func isSet(_ text: String?) -> Bool { ["true", "1"].contains(text) }

  // MARK: Options

  private func text(_ key: String) -> String { query[key] ?? "" }

  var selector: Selector {
    get throws(Refusal) { try Selector(labels: text("labelSelector"), fields: text("fieldSelector")) }
  }

  /// nil: any version does, or the newest is meant.
  func version() throws(Refusal) -> (number: Int?, isAny: Bool) {
    let text = text("resourceVersion")
    guard !text.isEmpty else { return (nil, false) }
    guard let number = Int(text), number >= 0 else {
      throw .invalid("ListOptions", "resourceVersion", "Invalid value: \"\(text)\"")
    }
    return number == 0 ? (nil, true) : (number, false)
  }

  /// Nothing is stored of it.
  var isDryRun: Bool { text("dryRun") == "All" }
  var isExact: Bool { text("resourceVersionMatch") == "Exact" }
  var sendsInitialEvents: Bool { Self.isSet(query["sendInitialEvents"]) }
  var allowsBookmarks: Bool { Self.isSet(query["allowWatchBookmarks"]) }
  var timeoutSeconds: Int { Int(text("timeoutSeconds")) ?? 1800 }
  /// 0: none.
  var limit: Int { Int(text("limit")) ?? 0 }
  var next: String { text("continue") }

  /// What the API server checks of a list or watch before it does anything.
  func validateOptions(streamsLists: Bool) throws(Refusal) {
    func forbidden(_ field: String, _ message: String) -> Refusal {
      .invalid("ListOptions.meta.k8s.io \"\"", field, "Forbidden: \(message)")
    }
    let match = text("resourceVersionMatch")
    if !match.isEmpty, !["Exact", "NotOlderThan"].contains(match) {
      throw .invalid("ListOptions.meta.k8s.io \"\"", "resourceVersionMatch", "Unsupported value: \"\(match)\"")
    }
    if query["sendInitialEvents"] != nil {
      guard verb == .watch else { throw forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list") }
      guard streamsLists else {
        throw forbidden(
          "sendInitialEvents", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
      }
      guard match == "NotOlderThan" else {
        throw forbidden(
          "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
      }
    } else if verb == .watch, !match.isEmpty {
      throw forbidden(
        "resourceVersionMatch", "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
    }
    guard verb == .list else { return }
    if !match.isEmpty, text("resourceVersion").isEmpty {
      throw forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
    }
    if !match.isEmpty, !next.isEmpty {
      throw forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
    }
    if isExact, text("resourceVersion") == "0" {
      throw forbidden(
        "resourceVersionMatch", "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
    }
    if !next.isEmpty, !["", "0"].contains(text("resourceVersion")) {
      throw .badRequest("specifying resource version is not allowed when using continue")
    }
  }
}

/// Where a list goes on: opaque to all but the server.
struct ContinueToken: Codable {
  var v = "meta.k8s.io/v1"
  var rv: Int
  var start: String

  init(version: Int, after name: ObjectStore.Name) {
    (rv, start) = (version, "\(name.namespace)/\(name.name)")
  }

  init(_ text: String) throws(Refusal) {
    guard let data = Data(base64Encoded: text), let token = try? JSONDecoder().decode(Self.self, from: data),
      token.v == "meta.k8s.io/v1"
    else { throw .badRequest("continue key is not valid: \(text.prefix(20))") }
    self = token
  }

  var text: String { ((try? JSONEncoder().encode(self)) ?? Data()).base64EncodedString() }

  var name: ObjectStore.Name {
    let parts = start.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    return ObjectStore.Name(String(parts[0]), parts.count == 2 ? String(parts[1]) : "")
  }
}
