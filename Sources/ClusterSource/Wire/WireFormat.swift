import KubernetesObjects
import LocalAPI

/// How a list says how far it is.
package struct ListProgress: Hashable, Sendable {
  /// What a watch goes on from.
  var resourceVersion = ""
  /// What asks for the next page; "" where this is the last.
  var next = ""
  /// Objects in later pages, where the server tells.
  var remaining: Int?
}

/// Why the API server refuses: `metav1.Status`.
struct APIStatus: Error, Hashable, Sendable, CustomStringConvertible {
  /// The HTTP status, also where it comes within a watch.
  var code: Int
  /// Such as `Expired`; "" where it says none.
  var reason: String
  var message: String
  var retryAfterSeconds: Int?
  /// With `Expired`: where an inconsistent list may go on.
  var next = ""

  var description: String { "\(code)\(reason.isEmpty ? "" : " \(reason)"): \(message)" }
}

/// What a watch tells, the object as its tree.
enum WatchFrame: Hashable, Sendable {
  /// It is there now, new or changed.
  case present(ManifestNode)
  /// It is gone, or no longer selected; as it last was.
  case gone(ManifestNode)
  /// Nothing before this version will come any more. `isEndOfList`: all that there was at the beginning has been told.
  case bookmark(resourceVersion: String, isEndOfList: Bool)
  case failed(APIStatus)
}

/// The forms in which the API server speaks of built-in types. All others are JSON only.
package enum WireFormat: Sendable, CaseIterable {
  case protobuf
  case json

  /// For `Accept`. JSON is what every server knows, for when it refuses the other.
  func accepted(isWatch: Bool) -> String {
    switch self {
    case .protobuf: "application/vnd.kubernetes.protobuf\(isWatch ? ";stream=watch" : "")"
    case .json: "application/json\(isWatch ? ";stream=watch" : "")"
    }
  }

  /// What an answer's `Content-Type` says; nil for neither.
  init?(contentType: String) {
    switch contentType.prefix(while: { $0 != ";" && $0 != " " }).lowercased() {
    case "application/vnd.kubernetes.protobuf": self = .protobuf
    case "application/json": self = .json
    default: return nil
    }
  }

  /// An object, or a frame of a watch, is refused beyond this: etcd takes none of more than 1.5 MiB, and no JSON of it is
  /// five times as long.
  static let objectLimit = 16 << 20

  /// Annotation of the bookmark that ends the list at the beginning of a watch.
  static let initialEventsEnd = "k8s.io/initial-events-end"

  /// The body of an error.
  func status(_ bytes: [UInt8]) throws(WireProblem) -> APIStatus {
    switch self {
    case .protobuf:
      let (_, content) = try ProtobufEnvelope.open(bytes, 0..<bytes.count)
      return APIStatus(try MessageSchema.status.tree(bytes, in: content))
    case .json: return APIStatus(try JSONTree.tree(bytes[...]))
    }
  }
}

extension APIStatus {
  init(_ tree: ManifestNode) {
    code = tree["code"]?.wholeNumber ?? 0
    reason = tree["reason"]?.textValue ?? ""
    message = tree["message"]?.textValue ?? ""
    retryAfterSeconds = tree["details"]?["retryAfterSeconds"]?.wholeNumber
    next = tree["metadata"]?["continue"]?.textValue ?? ""
  }
}

extension ListProgress {
  init(_ metadata: ManifestNode) {
    resourceVersion = metadata["resourceVersion"]?.textValue ?? ""
    next = metadata["continue"]?.textValue ?? ""
    remaining = metadata["remainingItemCount"]?.wholeNumber
  }
}

extension ManifestNode {
  var textValue: String? {
    if case .scalar(let text, _, _) = self { text } else { nil }
  }
  var wholeNumber: Int? { textValue.flatMap { Int($0) } }

  /// Of an object, what it says of its version.
  var resourceVersion: String { self["metadata"]?["resourceVersion"]?.textValue ?? "" }
}
