/// From a manifest's tree to an object: which kind it is, what every kind has in common, and lists.

public enum DecodeResult: Sendable {
  /// The problems are of parts that were left out; the object stands without them. `line`: where it begins.
  case object(ClusterObject, [ObjectProblem], line: Int)
  /// A kind, or a group's kind, that Sluice has no use for.
  case ignoredKind(apiVersion: String, kind: String)
  /// A `List`, in its order; nested ones stay nested. An empty document is an empty list.
  case list([DecodeResult])
  /// The identity is nil where it could not be read.
  case bad(ObjectProblem, ObjectID?)
}

/// Decodes one document. `file` is only for the problems.
public func decodeObject(_ node: ManifestNode, file: String) -> DecodeResult {
  ObjectDecoder().decode(node, file: file)
}

/// Decodes documents with the defaulting and validation of the API server (1.36).
///
/// Its objects share their long strings with each other as long as one decoder decodes them: thousands of slices name
/// the same few nodes.
public final class ObjectDecoder {
  var strings = StringPool()
  /// Of the object that is being decoded: parts left out of it.
  var partProblems: [FieldError] = []

  public init() {}

  /// Forgets the strings seen so far; what was decoded with them keeps them.
  public func forgetStrings() { strings = StringPool() }

  public func decode(_ node: ManifestNode, file: String) -> DecodeResult {
    decode(node, file: file, inherited: nil)
  }

  /// Decodes an object of a kind that is known: in lists of the API server they do not name it.
  public func decode(_ node: ManifestNode, as kind: ObjectKind) -> DecodeResult {
    decode(node, file: "", inherited: TypeMeta(apiVersion: kind.apiVersion, kind: kind.rawValue))
  }

  private struct TypeMeta {
    var apiVersion: String
    var kind: String
  }

  private func decode(_ node: ManifestNode, file: String, inherited: TypeMeta?) -> DecodeResult {
    if case .null = node { return .list([]) }
    let type: TypeMeta
    do throws(FieldError) {
      type = try Self.typeMeta(node, inherited: inherited)
      if type.kind.hasSuffix("List"), let items = try node.optional("items", Self.itself) {
        return try list(items, of: type, file: file)
      }
    } catch { return .bad(Self.problem(error, object: "", file: file), nil) }

    let version = type.apiVersion.split(separator: "/", omittingEmptySubsequences: false)
    guard let kind = ObjectKind(rawValue: type.kind), (version.count == 2 ? version[0] : "") == kind.apiGroup else {
      return .ignoredKind(apiVersion: type.apiVersion, kind: type.kind)
    }
    let id = Self.readableID(kind, node)
    let name = id.map(\.description) ?? kind.rawValue
    partProblems = []
    do throws(FieldError) {
      guard type.apiVersion == kind.apiVersion else {
        throw node.wrong("apiVersion", "must be \(kind.apiVersion), is \(quoted(type.apiVersion))")
      }
      let object = try object(kind, node)
      let problems = partProblems.map { Self.problem($0, object: name, file: file) }
      return .object(object, problems, line: node.line)
    } catch { return .bad(Self.problem(error, object: name, file: file), id) }
  }

  private static func problem(_ error: FieldError, object: String, file: String) -> ObjectProblem {
    ObjectProblem(file: file, line: error.line, object: object, field: error.path, message: error.message)
  }

  private static func itself(_ node: ManifestNode) throws(FieldError) -> ManifestNode { node }

  /// Items of a typed list carry no type of their own when they come from the API server.
  private static func typeMeta(_ node: ManifestNode, inherited: TypeMeta?) throws(FieldError) -> TypeMeta {
    guard case .mapping = node else { throw FieldError(node, "an object must be a mapping, is \(node.summary)") }
    var apiVersion = try node.optional("apiVersion", Read.text)
    var kind = try node.optional("kind", Read.text)
    if let inherited, kind == nil { (apiVersion, kind) = (apiVersion ?? inherited.apiVersion, inherited.kind) }
    guard let kind, !kind.isEmpty else { throw node.wrong("kind", "is missing") }
    guard let apiVersion, !apiVersion.isEmpty else { throw node.wrong("apiVersion", "is missing") }
    return TypeMeta(apiVersion: apiVersion, kind: kind)
  }

  private func list(_ items: ManifestNode, of type: TypeMeta, file: String) throws(FieldError) -> DecodeResult {
    let elements: [ManifestNode]
    do throws(FieldError) { elements = try items.elements() } catch { throw error.within("items") }
    let itemKind = String(type.kind.dropLast("List".count))
    let inherited = itemKind.isEmpty ? nil : TypeMeta(apiVersion: type.apiVersion, kind: itemKind)
    return .list(elements.map { decode($0, file: file, inherited: inherited) })
  }

  /// The identity of an object that may be wrong in every other way.
  private static func readableID(_ kind: ObjectKind, _ node: ManifestNode) -> ObjectID? {
    guard let metadata = node["metadata"], case .scalar(let name, _, _)? = metadata["name"], !name.isEmpty
    else { return nil }
    var namespace = ""
    if kind.isNamespaced {
      namespace = "default"
      if case .scalar(let text, _, _)? = metadata["namespace"], !text.isEmpty { namespace = text }
    }
    return ObjectID(kind, ObjectKey(namespace: abbreviated(namespace), name: abbreviated(name)))
  }

  private func object(_ kind: ObjectKind, _ node: ManifestNode) throws(FieldError) -> ClusterObject {
    let metadata = try metadata(kind, node)
    switch kind {
    case .service: return .service(try service(node, metadata))
    case .endpointSlice: return .endpointSlice(try endpointSlice(node, metadata))
    case .node: return .node(try self.node(node, metadata))
    case .pod: return .pod(try pod(node, metadata))
    case .namespace: return .namespace(Namespace(name: metadata.key.name, labels: metadata.labels))
    case .networkPolicy: return .networkPolicy(try networkPolicy(node, metadata))
    case .serviceCIDR: return .serviceCIDR(try serviceCIDR(node, metadata))
    }
  }
}

// MARK: Metadata

/// `metav1.ObjectMeta`, as far as any kind uses it.
struct ObjectMetadata {
  var key: ObjectKey
  var uid: String
  /// Unix milliseconds.
  var creationTime: Int64?
  var isBeingDeleted: Bool
  var labels: Labels
  /// Unix milliseconds; of EndpointSlices.
  var lastChangeTriggerTime: Int64?
}

extension ObjectDecoder {
  func metadata(_ kind: ObjectKind, _ node: ManifestNode) throws(FieldError) -> ObjectMetadata {
    try node.section("metadata") { (metadata) throws(FieldError) in
      let name = try metadata.required("name") { (field) throws(FieldError) in try self.name(field, of: kind) }
      var namespace = ""
      if kind.isNamespaced {
        let given = try metadata.optional("namespace") { (field) throws(FieldError) in
          let text = try Read.text(field)
          guard text.isEmpty || NameRules.isLabel(text) else {
            throw FieldError(field, "\(NameRules.labelRule), is \(quoted(text))")
          }
          return strings.shared(text)
        }
        namespace = given.flatMap { $0.isEmpty ? nil : $0 } ?? "default"
      }
      let created = try metadata.optional("creationTimestamp", Self.time)
      let deleted = try metadata.optional("deletionTimestamp", Self.time)
      let labels = try metadata.optional("labels", labels) ?? Labels()
      // The API server takes any text here, and so no bad time may cost the slice.
      let triggered = try metadata.optional("annotations", Self.annotations)?[WellKnown.lastChangeTriggerTime]
      return ObjectMetadata(
        key: ObjectKey(namespace: namespace, name: name),
        uid: try metadata.optional("uid", Read.text) ?? "",
        creationTime: created, isBeingDeleted: deleted != nil, labels: labels,
        lastChangeTriggerTime: triggered.flatMap(unixMilliseconds(rfc3339:)))
    }
  }

  private func name(_ field: ManifestNode, of kind: ObjectKind) throws(FieldError) -> String {
    let text = try Read.text(field)
    switch kind {
    case .service, .namespace:
      guard NameRules.isLabel(text) else { throw FieldError(field, "\(NameRules.labelRule), is \(quoted(text))") }
    case .endpointSlice, .node, .pod, .networkPolicy, .serviceCIDR:
      guard NameRules.isSubdomain(text) else {
        throw FieldError(field, "\(NameRules.subdomainRule), is \(quoted(text))")
      }
    }
    // A slice names its Service, and pods and slices their node.
    return kind == .service || kind == .node ? strings.shared(text) : text
  }

  static func time(_ field: ManifestNode) throws(FieldError) -> Int64 {
    let text = try Read.text(field)
    guard let time = unixMilliseconds(rfc3339: text) else {
      throw FieldError(field, "must be a time such as 2026-01-31T12:00:00Z, is \(quoted(text))")
    }
    return time
  }

  /// Labels, or the equality selector over them.
  func labels(_ field: ManifestNode) throws(FieldError) -> Labels {
    var labels = Labels()
    for entry in try field.entries() {
      do throws(FieldError) {
        let value = try Read.stringMapValue(entry.value)
        guard NameRules.isQualifiedName(entry.key) else {
          throw FieldError(entry.value, "the key \(NameRules.labelKeyRule)")
        }
        guard NameRules.isLabelValue(value) else {
          throw FieldError(entry.value, "\(NameRules.labelValueRule), is \(quoted(value))")
        }
        labels[strings.shared(entry.key)] = strings.shared(value)
      } catch { throw error.within("[\(abbreviated(entry.key))]") }
    }
    return labels
  }

  private static func annotations(_ field: ManifestNode) throws(FieldError) -> [String: String] {
    var annotations: [String: String] = [:]
    for entry in try field.entries() {
      do throws(FieldError) {
        let value = try Read.stringMapValue(entry.value)
        // The API server compares the lower-case form.
        guard NameRules.isQualifiedName(entry.key.lowercased()) else {
          throw FieldError(entry.value, "the key \(NameRules.labelKeyRule)")
        }
        if entry.key == WellKnown.lastChangeTriggerTime { annotations[entry.key] = value }
      } catch { throw error.within("[\(abbreviated(entry.key))]") }
    }
    return annotations
  }

  /// One of an object's annotations that mean something to Sluice, whose annotations are known to be a mapping of text.
  func annotation<Value: RawRepresentable & CaseIterable>(_ key: String, of node: ManifestNode) throws(FieldError)
    -> Value?
  where Value.RawValue == String {
    try node.section("metadata") { (metadata) throws(FieldError) in
      try metadata.section("annotations") { (annotations) throws(FieldError) in
        for entry in try annotations.entries() where entry.key == key {
          do throws(FieldError) {
            let text = try Read.stringMapValue(entry.value)
            return try Read.choice(.scalar(text, isQuoted: true, line: entry.value.line)) as Value
          } catch { throw error.within("[\(key)]") }
        }
        return nil
      }
    }
  }
}

// MARK: Sharing

/// Gives equal strings and arrays one place in memory.
struct StringPool {
  private var strings: Set<String> = []
  private var arrays: Set<[String]> = []

  mutating func shared(_ text: String) -> String {
    // Up to 15 bytes lie in the value itself.
    guard text.utf8.count > 15 else { return text }
    return strings.insert(text).memberAfterInsert
  }

  mutating func shared(_ array: [String]) -> [String] {
    array.isEmpty ? [] : arrays.insert(array).memberAfterInsert
  }
}
